// The npm SDKs of OpenAI and Anthropic for `chat_alone.py`: bodies on standard input, one result a line, as JSON.
//
//     node judges/chat_alone.mjs API URL       [[name, body], ...] on standard input
import { readFileSync } from 'node:fs';
import Anthropic from '@anthropic-ai/sdk';
import OpenAI from 'openai';

const [api, url] = process.argv.slice(2);
const gpt = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
const claude = new Anthropic({ baseURL: url, apiKey: 'none', maxRetries: 0 });
const ends = { end_turn: 'stop', completed: 'stop', tool_use: 'tool_calls', max_tokens: 'length', incomplete: 'length' };

function said(text, calls, why, asked, answered) {
  const end = ends[why] ?? why;
  return [text.startsWith('{') ? JSON.parse(text) : text, calls, calls.length && end === 'stop' ? 'tool_calls' : end, asked, answered];
}

function ofChat({ choices: [{ message, finish_reason: why }], usage }) {
  const calls = (message.tool_calls ?? []).map(({ function: f }) => [f.name, JSON.parse(f.arguments)]);
  return said(message.content ?? '', calls, why, usage.prompt_tokens, usage.completion_tokens);
}

async function ofChunks(chunks) {
  const message = { content: '', tool_calls: [] };
  let why = null;
  let usage = null;
  for await (const chunk of chunks) {
    usage = chunk.usage ?? usage;
    for (const { delta, finish_reason: reason } of chunk.choices) {
      message.content += delta.content ?? '';
      why = reason ?? why;
      for (const { index, function: f } of delta.tool_calls ?? []) {
        const { function: held } = (message.tool_calls[index] ??= { function: { name: '', arguments: '' } });
        held.name += f.name ?? '';
        held.arguments += f.arguments ?? '';
      }
    }
  }
  return ofChat({ choices: [{ message, finish_reason: why }], usage });
}

function ofMessage({ content, stop_reason: why, usage }) {
  const text = content.filter(({ type }) => type === 'text').map((block) => block.text).join('');
  const calls = content.filter(({ type }) => type === 'tool_use').map(({ name, input }) => [name, input]);
  return said(text, calls, why, usage.input_tokens + (usage.cache_read_input_tokens ?? 0), usage.output_tokens);
}

function ofResponse({ output, status, usage }) {
  const parts = output.filter(({ type }) => type === 'message').flatMap(({ content }) => content);
  const calls = output.filter(({ type }) => type === 'function_call').map((item) => [item.name, JSON.parse(item.arguments)]);
  return said(parts.map(({ text }) => text).join(''), calls, status, usage.input_tokens, usage.output_tokens);
}

// Its own `finalResponse` does not read the end of a response that is incomplete.
async function ofEvents(events) {
  let last = null;
  for await (const event of events) last = event;
  return ofResponse(last.response);
}

const asks = {
  chat: async (body) => ofChat(await gpt.chat.completions.create(body)),
  messages: async (body) => ofMessage(await claude.messages.create(body)),
  responses: async (body) => ofResponse(await gpt.responses.create(body)),
};
const streams = {
  chat: async (body) => ofChunks(await gpt.chat.completions.create({ ...body, stream: true, stream_options: { include_usage: true } })),
  messages: async (body) => ofMessage(await claude.messages.stream(body).finalMessage()),
  responses: async (body) => ofEvents(gpt.responses.stream(body)),
};

for (const [name, body] of JSON.parse(readFileSync(0, 'utf8'))) {
  for (const [how, table] of [['', asks], [', streamed', streams]]) {
    let result;
    try {
      result = `ok ${JSON.stringify(await table[api](body))}`;
    } catch (error) {
      result = error.status ? `refused ${error.status}` : `failed ${error.constructor.name}: ${error.message}`.slice(0, 300);
    }
    console.log(JSON.stringify([`${name}${how}`, result]));
  }
}
