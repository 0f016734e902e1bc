"""`python -m scripts.dashboards.typecheck`: the dashboards against Grafana's own TypeScript types.

Needs node 20 or newer, and npm to fetch `@grafana/schema` and the compiler, pinned in `schema/package-lock.json`, into
`.cache/dashboards`. Grafana itself is not run: what its types cannot say, such as whether a panel looks right, is not
checked here. Exit status 0 sound, 1 faults, 3 something is missing on this machine: never silently sound.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.dashboards.__main__ import FOLDER
from scripts.dashboards.panels import Json

SCHEMA = Path(__file__).resolve().parent / "schema"
CACHE = Path(__file__).resolve().parent.parent.parent / ".cache" / "dashboards"
MISSING = 3
_PANELS = {
    "timeseries": "TimeSeriesPanelCfg_types.gen",
    "stat": "StatPanelCfg_types.gen",
    "table": "TablePanelCfg_types.gen",
    "bargauge": "BarGaugePanelCfg_types.gen",
    "text": "TextPanelCfg_types.gen",
}
_HEAD = "import type { Dashboard, GraphFieldConfig } from '@grafana/schema';\nimport type { Plain } from './plain';\n"


def source_of(dashboard: Json) -> str:
    """TypeScript that compiles when the dashboard, its panels' options and its curves' looks are of Grafana's types."""
    lines = [_HEAD]
    lines += [
        f"import type {{ Options as {kind} }} from "
        f"'@grafana/schema/dist/esm/raw/composable/{kind}/panelcfg/x/{module}';"
        for kind, module in _PANELS.items()
    ]
    lines.append(f"export const dashboard = {json.dumps(dashboard, indent=1)} satisfies Plain<Dashboard>;")
    for panel in dashboard["panels"]:
        if panel["type"] in _PANELS:
            lines.append(f"// {panel['title']}")
            options = json.dumps(panel["options"])
            lines.append(f"export const options{panel['id']} = {options} satisfies Partial<Plain<{panel['type']}>>;")
        custom = panel.get("fieldConfig", {}).get("defaults", {}).get("custom")
        if custom is not None:
            lines.append(f"export const custom{panel['id']} = {json.dumps(custom)} satisfies Plain<GraphFieldConfig>;")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Fetches what is needed, compiles. Returns the exit status."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        sys.stderr.write("Grafana's types need node 20 or newer and npm (https://nodejs.org).\n")
        return MISSING
    CACHE.mkdir(parents=True, exist_ok=True)
    for path in SCHEMA.iterdir():
        if path.is_file():
            shutil.copy(path, CACHE)
    fetched = subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund"], cwd=CACHE, capture_output=True, text=True, check=False
    )
    if fetched.returncode:
        sys.stderr.write(f"npm cannot fetch Grafana's types:\n{fetched.stdout}{fetched.stderr}")
        return MISSING
    for old in CACHE.glob("penstock-*.ts"):
        old.unlink()
    for path in FOLDER.glob("*.json"):
        source = source_of(json.loads(path.read_text(encoding="utf-8")))
        (CACHE / path.with_suffix(".ts").name).write_text(source, encoding="utf-8")
    compiler = CACHE / "node_modules" / ".bin" / "tsc"
    return subprocess.run([str(compiler), "-p", "."], cwd=CACHE, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
