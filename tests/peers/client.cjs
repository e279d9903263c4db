// The JavaScript client, for tests: node client.cjs push|pull HUB TOKEN REPO FOLDER [REVISION]. Says what it did in JSON.
const fs = require("node:fs");
const path = require("node:path");
const hub = require("@huggingface/hub");

const [verb, hubUrl, accessToken, name, folder, revision = "main"] = process.argv.slice(2);
const repo = { type: "model", name };

async function push() {
  await hub.createRepo({ repo, hubUrl, accessToken });
  const names = fs.readdirSync(folder, { recursive: true }).filter((file) => fs.statSync(path.join(folder, file)).isFile());
  const files = names.map((file) => ({ path: file, content: new Blob([fs.readFileSync(path.join(folder, file))]) }));
  const done = await hub.uploadFiles({ repo, hubUrl, accessToken, files, commitTitle: "from JavaScript" });
  return { commit: done.commit.oid, files: names };
}

async function pull() {
  const listed = [];
  for await (const file of hub.listFiles({ repo, hubUrl, accessToken, revision, recursive: true })) {
    if (file.type !== "file") continue;
    const content = await hub.downloadFile({ repo, hubUrl, accessToken, revision, path: file.path });
    fs.mkdirSync(path.dirname(path.join(folder, file.path)), { recursive: true });
    fs.writeFileSync(path.join(folder, file.path), Buffer.from(await content.arrayBuffer()));
    listed.push({ path: file.path, size: file.size });
  }
  return { sha: (await hub.modelInfo({ name, hubUrl, accessToken, revision, additionalFields: ["sha"] })).sha, files: listed };
}

({ push, pull })[verb]().then((said) => console.log(JSON.stringify(said)));
