// An AI behind jambonz' SDK for Node. It plays the caller's audio back. On key 1 it clears what is queued,
// on key 2 it sets a mark, on key 3 it sets one and clears the marks, on key 9 it ends the stream.
// SDK is the path of the SDK.
import http from 'node:http';

const { createEndpoint } = await import(`${process.env.SDK}/dist/websocket/index.js`);
const server = http.createServer();
const quiet = { info: console.log, error: console.log, debug: () => {} };
const makeService = createEndpoint({ server, logger: quiet });
const service = makeService.audio({ path: '/jambonz' });
service.on('connection', (stream, req) => {
  const { from, to, mixType } = stream.metadata;
  console.log('connected', stream.callSid, stream.sampleRate, from, to, mixType, stream.ws.protocol);
  stream.on('audio', (pcm) => stream.sendAudio(pcm));
  stream.on('mark', ({ name, event }) => console.log('mark', name, event));
  stream.on('dtmf', ({ digit }) => {
    console.log('key', digit);
    if (digit === '1') stream.killAudio();
    if (digit === '2') stream.sendMark('m');
    if (digit === '3') {
      stream.sendAudio(Buffer.alloc(16000));
      stream.sendMark('n');
      stream.clearMarks();
    }
    if (digit === '9') stream.disconnect();
  });
  stream.on('close', (code) => console.log('closed', code));
});
server.listen(0, '127.0.0.1', () => {
  console.log(`listening on ws://127.0.0.1:${server.address().port}`);
});
