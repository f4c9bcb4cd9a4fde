// marks.py for handlers on Node, which has no shared memory in files: the count is written once per turn of the loop.
import fs from "node:fs";

const name = `${process.env.BENCH_MARKS}/${process.pid}`;
const stamping = Boolean(process.env.BENCH_STAMPS);
const mark = new BigInt64Array(2);
const stamp = new BigInt64Array(2);
let file;
let stamps;
let count = 0;
let scheduled = false;

function open() {
  stamps = fs.openSync(`${name}.stamps`, "a");
  mark[0] = process.hrtime.bigint();
  fs.writeFileSync(`${name}.new`, mark);
  file = fs.openSync(`${name}.new`, "r+");
  fs.renameSync(`${name}.new`, name);
}

function write() {
  scheduled = false;
  mark[1] = BigInt(count);
  fs.writeSync(file, mark, 0, 16, 0);
}

export function begun(n) {
  if (file === undefined) open();
  count += 1;
  if (stamping) {
    stamp[0] = BigInt(n);
    stamp[1] = process.hrtime.bigint();
    fs.writeSync(stamps, stamp);
  }
  if (!scheduled) {
    scheduled = true;
    setImmediate(write);
  }
}
