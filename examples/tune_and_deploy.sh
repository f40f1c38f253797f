#!/usr/bin/env bash
# Find the best engine of this machine and pack it for a robot of the same kind.
#
#   examples/tune_and_deploy.sh MODEL DATA FOLDER [OPTIONS OF TUNE]
#   examples/tune_and_deploy.sh m2h-tiny rooms/ robot/ --budget 10
#
# MODEL is a checkpoint or m2h-tiny, DATA a data set or a folder of your camera's pictures. FOLDER/best is the bundle of the
# fastest engine that passes the gates, FOLDER/best.tune what was measured, and FOLDER/best.tar.gz is for the robot.
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
model=$1 data=$2 folder=$3
shift 3

mkdir -p "$folder" || exit 2
m2h-deploy tune "$model" --data "$data" -o "$folder/best" "$@"
m2h-deploy inspect "$folder/best"
tar -czf "$folder/best.tar.gz" -C "$folder" best

python - "$folder/best" <<'END'
import sys

from m2h_deploy import __version__, load_bundle

engine = load_bundle(sys.argv[1]).manifest.engine.kind
print("\nOn the robot, beside the wheel of m2h-deploy and best.tar.gz:")
print(f"  pip install 'm2h_deploy-{__version__}-py3-none-any.whl[{engine}]'")
print("  tar -xzf best.tar.gz && m2h-deploy run best/ 0 -o out/")
END
