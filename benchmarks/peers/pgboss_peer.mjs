// pg-boss: batches of jobs for one handler, fetched without a pause while they come back full.
import { PgBoss } from "pg-boss";
import { begun } from "./marks.mjs";

const boss = new PgBoss({ connectionString: process.env.DATABASE_URL, max: 10, supervise: false, schedule: false });
boss.on("error", (error) => console.error(error));
await boss.start();

if (process.argv[2] === "prepare") {
  await boss.createQueue("noop");
  const jobs = Number(process.argv[3]);
  for (let start = 1; start <= jobs; start += 10000) {
    const count = Math.min(10000, jobs + 1 - start);
    await boss.insert("noop", Array.from({ length: count }, (_, i) => ({ data: { n: start + i } })));
  }
  await boss.stop({ graceful: false });
  process.exit(0);
} else {
  const options = { batchSize: 1000, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 };
  for (let worker = 0; worker < 2; worker += 1) {
    await boss.work("noop", options, async (jobs) => {
      for (const job of jobs) begun(job.data.n);
    });
  }
}
