// Asks a gateway in every way of the dialect through the unmodified `openai` package, and prints
// what it was told as one JSON object. Usage: node ask.mjs BASE_URL MODEL
import OpenAI, { APIError, BadRequestError, NotFoundError } from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "where is my parcel?" }];
const reference = `${model}:reference`;
const bon = `${model}:bon`;
const tools = [{ type: "function", function: { name: "find_parcel", parameters: {} } }];
const called = { tools, tool_choice: { type: "function", function: { name: "find_parcel" } } };

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return {
      classes: [APIError, BadRequestError, NotFoundError]
        .filter((kind) => error instanceof kind)
        .map((kind) => kind.name),
      status: error.status,
      code: error.code,
      param: error.param,
      type: error.type,
      requestID: error.requestID,
      message: error.message,
    };
  }
  return null;
}

const told = {};

const { data, response, request_id } = await client.chat.completions
  .create({ model: bon, messages, seed: 3, n: 2, best_of: 4, bond: { return_candidates: true } })
  .withResponse();
told.selection = data;
told.headers = { arm: response.headers.get("x-bond-arm"), request_id };

told.single = await client.chat.completions.create({ model: reference, messages, seed: 3 });
told.stream = await collect(
  await client.chat.completions.create({
    model: reference,
    messages,
    seed: 3,
    stream: true,
    stream_options: { include_usage: true },
  }),
);

const helper = client.chat.completions.stream({
  model: reference,
  messages,
  seed: 3,
  logprobs: true,
  top_logprobs: 2,
});
let deltas = "";
helper.on("content", (delta) => (deltas += delta));
told.helped = await helper.finalChatCompletion();
told.deltas = deltas;

told.called = await client.chat.completions.create({ model: bon, messages, seed: 3, ...called });
told.called_streamed = await client.chat.completions
  .stream({ model: bon, messages, seed: 3, ...called })
  .finalChatCompletion();

const raw = { model: reference, prompt: "where is", seed: 3, max_tokens: 6 };
told.text = await client.completions.create({ ...raw, logprobs: 1 });
told.text_stream = await collect(await client.completions.create({ ...raw, stream: true }));

told.models = (await client.models.list()).data.map((entry) => entry.id);
told.model = await client.models.retrieve(bon);

told.wrong = await failure(
  client.chat.completions.create({ model: reference, messages, temperature: 3 }),
);
told.unknown = await failure(
  client.chat.completions.create({ model: reference, messages, best_off: 3 }),
);
told.missing = await failure(client.chat.completions.create({ model: "gpt-9", messages }));

// the first pieces, then the connection is closed
const broken = await client.chat.completions.create({ model: reference, messages, stream: true });
for await (const chunk of broken) {
  told.first = chunk.choices[0].delta;
  break;
}

console.log(JSON.stringify(told));
