#!/usr/bin/env bash
# Build a local text corpus out of Debian packages: corpus.sh FOLDER [CHARACTERS]
# Writes FOLDER/corpus.jsonl, of about so many characters (380,000), and FOLDER/held_out.jsonl, a quarter of that. Needs
# apt-get and dpkg (of Debian 12, for the same text as in README.md) and the network for the download. Nothing is
# installed: packages are downloaded to FOLDER/packages and unpacked under FOLDER/unpacked.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:?usage: corpus.sh FOLDER [CHARACTERS]}/packages"
folder=$(cd "$1" && pwd)

cd "$folder/packages"
python3 "$here/corpus.py" packages | while read -r name; do
  compgen -G "${name}_*.deb" > /dev/null || apt-get download "$name" < /dev/null
  rm -rf "../unpacked/$name"
  mkdir -p "../unpacked/$name"
  dpkg -x "${name}"_*.deb "../unpacked/$name"
done

# The Bible is stored in the reader's own format; the reader prints it.
unpacked=$folder/unpacked
"$unpacked/bible-kjv/usr/bin/bible" -p "$unpacked/bible-kjv-text/usr/lib" 'gen1:1-rev22:21' > "$unpacked/bible-kjv-text/bible.txt"

python3 "$here/corpus.py" build "$unpacked" "$folder/corpus.jsonl" --characters "${2:-380000}" \
  --held-out "$folder/held_out.jsonl"
