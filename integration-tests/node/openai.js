// openai (npm): chat, stream, the stream helper, tools, parsed answers.

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { ANSWER, BASE_URL, CITIES, MESSAGES, MODEL, WEATHER, assert, keep, promise, rejection } from "./promises.js";

const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: "unused", maxRetries: 0 });
const ASK = { model: MODEL, messages: MESSAGES, max_tokens: 512, temperature: 0 };
const TOOLS = [{ type: "function", function: { name: "get_weather", description: "The weather.", parameters: WEATHER } }];

promise("models", async () => {
  const { data } = await client.models.list();
  assert(data.length === 1 && data[0].id === MODEL, data);
});

promise("chat", async () => {
  const answer = await client.chat.completions.create(ASK);
  assert(answer.choices[0].message.content === ANSWER && answer.choices[0].finish_reason === "stop", answer);
  assert(answer.usage.total_tokens > 0 && answer.id, answer);
});

promise("chat_stream", async () => {
  const stream = await client.chat.completions.create({ ...ASK, stream: true, stream_options: { include_usage: true } });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const text = chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.delta.content ?? "")).join("");
  assert(text === ANSWER && chunks[0].choices[0].delta.role === "assistant", chunks);
  assert(chunks.at(-1).usage.completion_tokens > 0, chunks.at(-1));
});

promise("chat_stream_helper", async () => {
  const final = await client.chat.completions.stream(ASK).finalChatCompletion();
  assert(final.choices[0].message.content === ANSWER, final);
});

promise("chat_tools", async () => {
  const ask = { ...ASK, tools: TOOLS, tool_choice: { type: "function", function: { name: "get_weather" } } };
  const answer = await client.chat.completions.create(ask);
  const call = answer.choices[0].message.tool_calls[0];
  assert(call.function.name === "get_weather" && CITIES.includes(JSON.parse(call.function.arguments).city), answer);
  const streamed = await client.chat.completions.stream(ask).finalChatCompletion();
  assert(CITIES.includes(JSON.parse(streamed.choices[0].message.tool_calls[0].function.arguments).city), streamed);
});

promise("chat_parse", async () => {
  const person = z.object({ name: z.enum(["Ada", "Bob"]), adult: z.boolean() });
  const answer = await client.chat.completions.parse({ ...ASK, response_format: zodResponseFormat(person, "person") });
  assert(["Ada", "Bob"].includes(answer.choices[0].message.parsed.name), answer);
});

promise("completions", async () => {
  const answer = await client.completions.create({ model: MODEL, prompt: "The sky is", max_tokens: 8, temperature: 0 });
  assert(answer.choices[0].text, answer);
});

promise("errors", async () => {
  const error = await rejection(() => client.chat.completions.create({ ...ASK, temperature: -1 }));
  assert([400, 422].includes(error.status) && error.param === "temperature", [error.status, error.param]);
});

await keep("openai");
