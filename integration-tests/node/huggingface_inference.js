// @huggingface/inference: text generation (which it asks of /v1/completions) and chat, plain and streamed.

import { InferenceClient } from "@huggingface/inference";

import { ANSWER, BASE_URL, CITIES, MESSAGES, MODEL, PROMPT, WEATHER, assert, keep, promise, rejection } from "./promises.js";

const client = new InferenceClient("unused", { endpointUrl: BASE_URL });
const CHAT = { model: MODEL, messages: MESSAGES, max_tokens: 512, temperature: 0 };

promise("text_generation", async () => {
  const answer = await client.textGeneration({ inputs: PROMPT, parameters: { max_new_tokens: 24, temperature: 0.01 } });
  assert(answer.generated_text === ANSWER, answer);
});

promise("chat_completion", async () => {
  const answer = await client.chatCompletion(CHAT);
  assert(answer.choices[0].message.content === ANSWER && answer.usage.total_tokens > 0, answer);
});

promise("chat_completion_stream", async () => {
  let text = "";
  for await (const chunk of client.chatCompletionStream(CHAT)) text += chunk.choices[0]?.delta.content ?? "";
  assert(text === ANSWER, text);
});

promise("chat_completion_tools", async () => {
  const tools = [{ type: "function", function: { name: "get_weather", description: "The weather.", parameters: WEATHER } }];
  const answer = await client.chatCompletion({ ...CHAT, tools, tool_choice: "required" });
  const call = answer.choices[0].message.tool_calls[0];
  assert(call.function.name === "get_weather" && CITIES.includes(JSON.parse(call.function.arguments).city), answer);
});

promise("chat_completion_response_format", async () => {
  const format = { type: "json_schema", json_schema: { name: "weather", schema: WEATHER, strict: true } };
  const answer = await client.chatCompletion({ ...CHAT, response_format: format });
  assert(CITIES.includes(JSON.parse(answer.choices[0].message.content).city), answer);
});

promise("errors", async () => {
  const error = await rejection(() => client.chatCompletion({ ...CHAT, temperature: -1 }));
  assert(String(error.message).length > 0 && JSON.stringify(error.httpResponse ?? {}).includes("temperature"), String(error));
});

await keep("@huggingface/inference");
