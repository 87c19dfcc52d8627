// OpenAI's npm client: the same calls directly and through the gateway give the same results.
//
//     node judges/npm_client.mjs URL MODEL       one result a line, as JSON
import OpenAI from 'openai';

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none' });
const common = { model, temperature: 0, seed: 1, max_tokens: 8, messages: [{ role: 'user', content: 'Say a word about the sea.' }] };
const tool = { type: 'function', function: { name: 'f', parameters: { type: 'object', properties: { a: { type: 'string' } } } } };

async function whole(more = {}) {
  const answer = await client.chat.completions.create({ ...common, ...more });
  return [answer.choices.map((choice) => [choice.message, choice.finish_reason]), answer.usage];
}

// Where a text is cut is the engine's business; what it says as a whole, and how it ends, is not.
async function streamed(more = {}) {
  const told = { text: '', roles: [], reasons: [], usage: [] };
  for await (const piece of await client.chat.completions.create({ ...common, stream: true, ...more })) {
    for (const { delta, finish_reason: reason } of piece.choices) {
      told.text += delta.content ?? '';
      if (delta.role) told.roles.push(delta.role);
      if (reason) told.reasons.push(reason);
    }
    if (piece.usage) told.usage.push(piece.usage);
  }
  return told;
}

const calls = {
  'chat': () => whole(),
  'chat, streamed': () => streamed(),
  'chat, streamed with usage': () => streamed({ stream_options: { include_usage: true } }),
  'chat, runner': async () => {
    const stream = client.chat.completions.stream({ ...common });
    return [await stream.finalContent(), (await stream.finalChatCompletion()).choices[0].finish_reason];
  },
  'chat, left in the middle': async () => {
    const stream = await client.chat.completions.create({ ...common, max_tokens: 64, stream: true });
    for await (const piece of stream) {
      stream.controller.abort();
      return piece.choices[0].delta.role;
    }
  },
  'chat, two answers': () => whole({ n: 2 }),
  'chat, tools': () => whole({ tools: [tool], tool_choice: 'none' }),
  'chat, JSON': () => whole({ response_format: { type: 'json_object' } }),
  'chat, logprobs': () => whole({ logprobs: true, top_logprobs: 2 }),
  'chat, wrong type': () => whole({ temperature: 'hot' }),
  'chat, headers': async () => {
    const { response } = await client.chat.completions.create(common).withResponse();
    return [response.status, response.headers.get('content-type')];
  },
  'text': async () => {
    const answer = await client.completions.create({ model, temperature: 0, seed: 1, max_tokens: 8, prompt: 'The sea is' });
    return [answer.choices, answer.usage];
  },
  'responses': async () => {
    const answer = await client.responses.create({ model, temperature: 0, max_output_tokens: 8, input: 'The sea' });
    return [answer.status, answer.output_text];
  },
  'responses, streamed': async () => {
    const kinds = new Set();
    const asked = { model, temperature: 0, max_output_tokens: 8, input: 'The sea', stream: true };
    for await (const event of await client.responses.create(asked)) kinds.add(event.type);
    return [...kinds];
  },
  'models hold it': async () => {
    const found = [];
    for await (const one of client.models.list()) found.push(one.id);
    return found.includes(model);
  },
};

for (const [name, call] of Object.entries(calls)) {
  let result;
  try {
    result = `ok ${JSON.stringify(await call())}`;
  } catch (error) {
    result = `${error.constructor.name} ${error.status ?? ''}`;
  }
  console.log(JSON.stringify([name, result]));
}
