#!/bin/sh
# Makes the two speech assets: raw mu-law, 8 kHz, mono. Run once; the results are committed.
# Needs: apt-get install espeak-ng sox
set -eu
cd "$(dirname "$0")"
say() { # VOICE FILE TEXT
    espeak-ng -v "$1" -s 165 -w "$2.wav" "$3"
    sox "$2.wav" -t ul -r 8000 -c 1 "$2.ulaw" norm -4 silence 1 0.01 0.1% reverse silence 1 0.01 0.1% reverse
    rm "$2.wav"
    ls -l "$2.ulaw"
}
say en-us+f3 greeting 'Hello, this is the trunkless echo agent. You are talking to a program on this very machine. What you say after this greeting comes straight back to you.'
say en-gb+m3 caller 'Hello, can you hear me? I am speaking while you speak, so please stop and listen. One, two, three. Goodbye.'
