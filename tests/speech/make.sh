#!/bin/bash
# Makes the recordings on which voice activity and machine detection are measured, mu-law at 8 kHz:
#
#   make.sh FOLDER
#
# Speech is synthesised by espeak-ng in three languages and several voices; sox adds noise and music
# and makes the beeps. human-*.ulaw and machine-*.ulaw are the beginnings of answered calls;
# speech-*.ulaw has 1.5 s of silence around each sentence, and speech-clean.ulaw is the same without
# noise. Needs espeak-ng and sox.
set -euo pipefail
mkdir -p "$1"
cd "$1"
pcm=(-r 8000 -c 1 -b 16)
say() { # VOICE SPEED FILE TEXT
  espeak-ng -v "$1" -s "$2" -w raw.wav "$4"
  sox raw.wav "${pcm[@]}" "$3" norm -9 silence 1 0.01 0.5% reverse silence 1 0.01 0.5% reverse
}
ulaw() { sox "$1" -t raw -r 8000 -c 1 -e mu-law "$2"; } # WAV FILE

# ---- speech, noise and music ----
sentences=(
  'en-us|Hello, this is John from the billing office. I am calling about my last invoice.'
  'en-gb+f3|Yes please. Could you tell me when the technician will come?'
  'en-us+m3|No, that is not what I asked for. Stop.'
  'de+f2|Guten Tag, ich hätte gerne einen Termin am Montag.'
  'de|Das ist mir zu teuer, haben Sie etwas anderes?'
  'fr|Bonjour, je voudrais parler à quelqu un du service client.'
  'fr+f4|Attendez, ce n est pas ma commande.'
  'en-us+f2|Wait a moment, I have a question.'
)
parts=()
for n in "${!sentences[@]}"; do
  say "${sentences[n]%%|*}" 160 sentence.wav "${sentences[n]#*|}"
  sox sentence.wav "part$n.wav" pad 1.5 1.5
  parts+=("part$n.wav")
done
sox "${parts[@]}" clean.wav
length=$(soxi -D clean.wav)
# -R: the same noise in each run
noise() { sox -R -n "${pcm[@]}" "$1.wav" synth "$length" "$2" gain "$3"; } # NAME KIND GAIN
noise white whitenoise -36
noise pink pinknoise -30
noise brown brownnoise -24
noise loud whitenoise -20
sox -n "${pcm[@]}" hum.wav synth "$length" sine 150 gain -20
sox -n "${pcm[@]}" ring.wav synth 1 sine 425 gain -15 pad 0 3 repeat 6
sox -R -n "${pcm[@]}" bursts.wav synth 0.08 whitenoise gain -12 pad 0.6 0.6 repeat 24
notes=()
for note in C3 E3 G3 C4 A3 F3 D3 G3; do
  sox -R -n -r 44100 -c 1 -b 16 "note$note.wav" synth 0.35 pluck "$note" gain -12 rate 8000
  notes+=("note$note.wav")
done
sox "${notes[@]}" music.wav repeat 9
for name in white pink brown hum ring bursts music loud; do ulaw "$name.wav" "noise-$name.ulaw"; done
ulaw clean.wav speech-clean.ulaw
for name in white pink; do
  sox -m -v 1 clean.wav -v 1 "$name.wav" mixed.wav
  ulaw mixed.wav "speech-$name.ulaw"
done

# ---- people and machines that answer ----
people=(
  'en-us|Hello?' 'en-gb|Yes?' 'en-us+f2|Hello, who is this?' 'en-gb+f3|Smith speaking.' 'en-us+m3|Hi, this is Anna.'
  'de|Ja, hallo?' 'de+f2|Müller, guten Tag.' 'de+m2|Schmidt.' 'de+f3|Hallo, wer ist da?' 'de|Autohaus Meier, guten Morgen.'
  'fr|Allô?' 'fr+f4|Oui, bonjour.' 'fr+m2|Allô, qui est à l appareil?' 'fr|Dupont à l appareil.' 'en-us|Yeah, what is it?'
  'en-gb+f2|Good morning, Miller and Sons, how can I help you?'
)
machines=(
  'en-us|You have reached the voicemail of John Smith. Please leave a message after the tone.'
  'en-gb+f3|Hi, this is Anna. I can not come to the phone right now. Leave me a message and I will call you back.'
  'en-us+f2|The person you are calling is not available. Please record your message after the beep.'
  'en-us+m3|Hello, you have reached the office of doctor Brown. Our office is closed.'
  'de|Guten Tag, Sie sind verbunden mit dem Anschluss von Familie Müller. Bitte sprechen Sie nach dem Ton.'
  'de+f2|Der gewünschte Gesprächspartner ist zur Zeit nicht erreichbar. Bitte hinterlassen Sie eine Nachricht.'
  'de+m2|Hallo, hier ist die Mailbox von Peter. Sprechen Sie nach dem Signal.'
  'fr|Bonjour, vous êtes bien sur la messagerie de Pierre Dupont. Laissez un message après le bip.'
  'fr+f4|Je ne suis pas disponible pour le moment. Merci de laisser votre message.'
  'fr+m2|Votre correspondant n est pas joignable. Veuillez laisser un message après le signal sonore.'
  'en-us|We are sorry, but no one can take your call. At the tone, please record your message.'
  'en-gb|Please leave your name and number after the tone.'
)
hertz=(1000 440 850 1400 620 2000)
for n in "${!people[@]}"; do
  say "${people[n]%%|*}" 150 greeting.wav "${people[n]#*|}"
  sox greeting.wav person.wav pad 0.6 4
  ulaw person.wav "human-$n.ulaw"
done
for n in "${!machines[@]}"; do
  say "${machines[n]%%|*}" 150 greeting.wav "${machines[n]#*|}"
  sox -n "${pcm[@]}" beep.wav synth "0.$((2 + n % 7))" sine "${hertz[n % 6]}" gain -12
  sox greeting.wav padded.wav pad 0.9 0.7
  sox padded.wav beep.wav machine.wav pad 0 3
  ulaw machine.wav "machine-$n.ulaw"
done
rm -f ./*.wav
