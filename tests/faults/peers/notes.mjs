// notes.py for Node.
import fs from "node:fs";
import path from "node:path";

export const SECONDS = Number(process.env.PEER_SECONDS ?? 0);
export const CONCURRENCY = Number(process.env.PEER_CONCURRENCY ?? 8);
export const POOLED = Boolean(process.env.PEER_POOLED);

const files = new Map();
let executions = 0;

function write(name, words, durable = false) {
  if (!files.has(name)) {
    files.set(name, fs.openSync(path.join(process.env.FAULTS_FOLDER, `${name}-${process.pid}.jsonl`), "a"));
  }
  fs.writeSync(files.get(name), `${JSON.stringify(words)}\n`);
  if (durable) fs.fdatasyncSync(files.get(name));
}

// Exact up to 104 days of uptime.
const now = () => Number(process.hrtime.bigint());
export const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export const lock = (id) => write("locks", [id]);

export async function effect(n, job, work) {
  const execution = ++executions;
  write("effects", ["begin", n, String(job), execution, process.pid, now()]);
  await work();
  write("effects", ["end", n, String(job), execution, process.pid, now()]);
}

export async function produce(submit) {
  let halt = false;
  process.on("SIGTERM", () => { halt = true; });
  const pause = 1000 / Number(process.env.PEER_RATE);
  let due = Date.now();
  for (let n = Number(process.env.PEER_FIRST); !halt; n += 1) {
    const began = now();
    try {
      write("submissions", [n, "acked", String(await submit(n)), began, now()], true);
    } catch (error) {
      write("submissions", [n, "unknown", null, began, now(), String(error).slice(0, 200)], true);
    }
    due = Math.max(due + pause, Date.now());
    await sleep(Math.max(1, due - Date.now()));
  }
}
