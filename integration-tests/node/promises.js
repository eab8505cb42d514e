// The sibling of python/clients/promises.py: runs every promise, prints a line for each, exits 1 if one is broken.

import { readFileSync } from "node:fs";

export const BASE_URL = process.argv[2].replace(/\/$/, "");
export const MODEL = "demo";
export const QUESTION = "What is two plus three?";
export const ANSWER = "Two plus three is five.";
export const MESSAGES = [{ role: "user", content: QUESTION }];
export const PROMPT = `<|user|>${QUESTION}<|end|><|assistant|>`;

export const CITIES = ["Oslo", "Paris", "Rome"];
export const WEATHER = {
  type: "object",
  properties: { city: { type: "string", enum: CITIES } },
  required: ["city"],
  additionalProperties: false,
};

const promises = [];

export function promise(name, run) {
  promises.push([name, run]);
}

export function assert(condition, seen) {
  if (!condition) throw new Error(`not as promised: ${JSON.stringify(seen)}`);
}

/** The error that `run` throws; it is an error if it does not. */
export async function rejection(run) {
  let answer;
  try {
    answer = await run();
  } catch (error) {
    return error;
  }
  throw new Error(`an error expected, got ${JSON.stringify(answer)}`);
}

export async function keep(name) {
  const manifest = new URL(`node_modules/${name}/package.json`, import.meta.url);
  console.log(`CLIENT ${name} ${JSON.parse(readFileSync(manifest)).version}`);
  let broken = 0;
  for (const [name, run] of promises) {
    try {
      await run();
      console.log(`PASS ${name}`);
    } catch (error) {
      broken += 1;
      const response = error.httpResponse ? ` ${JSON.stringify(error.httpResponse)}` : "";
      console.log(`FAIL ${name}: ${(String(error) + response).replace(/\s+/g, " ").slice(0, 1000)}`);
      console.error(error);
    }
  }
  process.exit(broken ? 1 : 0);
}
