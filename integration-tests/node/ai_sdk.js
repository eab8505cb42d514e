// ai with @ai-sdk/openai-compatible: text, stream, tool calls, objects.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, streamText, tool } from "ai";
import { z } from "zod";

import { ANSWER, BASE_URL, CITIES, MODEL, QUESTION, assert, keep, promise, rejection } from "./promises.js";

const provider = createOpenAICompatible({
  name: "tgi",
  baseURL: `${BASE_URL}/v1`,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const ASK = { model: provider(MODEL), prompt: QUESTION, maxOutputTokens: 512, temperature: 0, maxRetries: 0 };
const TOOLS = {
  get_weather: tool({ description: "The weather.", inputSchema: z.object({ city: z.enum(CITIES) }) }),
};

promise("generate_text", async () => {
  const answer = await generateText(ASK);
  assert(answer.text === ANSWER && answer.finishReason === "stop", answer.text);
  assert(answer.usage.outputTokens > 0, answer.usage);
});

promise("stream_text", async () => {
  const answer = streamText(ASK);
  const pieces = [];
  for await (const piece of answer.textStream) pieces.push(piece);
  assert(pieces.length > 1 && pieces.join("") === ANSWER, pieces);
  const usage = await answer.usage;
  assert(usage.outputTokens > 0 && usage.inputTokens > 0, usage);
});

promise("generate_text_tools", async () => {
  const { toolCalls } = await generateText({ ...ASK, tools: TOOLS, toolChoice: "required" });
  assert(toolCalls.length >= 1 && toolCalls.every((call) => CITIES.includes(call.input.city)), toolCalls);
});

promise("stream_text_tools", async () => {
  const answer = streamText({ ...ASK, tools: TOOLS, toolChoice: { type: "tool", toolName: "get_weather" } });
  await answer.consumeStream();
  const calls = await answer.toolCalls;
  assert(calls.length === 1 && CITIES.includes(calls[0].input.city), calls);
});

promise("generate_object", async () => {
  const schema = z.object({ city: z.enum(CITIES), warm: z.boolean() });
  const { output } = await generateText({ ...ASK, output: Output.object({ schema }) });
  assert(CITIES.includes(output.city) && typeof output.warm === "boolean", output);
});

promise("errors", async () => {
  const error = await rejection(() => generateText({ ...ASK, temperature: -1 }));
  assert([400, 422].includes(error.statusCode) && error.message.includes("temperature"), String(error));
});

await keep("@ai-sdk/openai-compatible");
