#!/usr/bin/env bash
# Make the certificates of a Kafka broker with SASL_SSL, or of the readers server: an authority of its own, and the server's certificate and
# key (PEM, PKCS#8).
# Usage: bash/certificates.sh [FOLDER [NAME...]]
#        bash/certificates.sh readers [FOLDER [NAME...]]
#   FOLDER  by default secrets/kafka or secrets/readers in the data folder; the local broker looks there for its own
#   NAME    host names and addresses of the server besides localhost and 127.0.0.1
# Twice is harmless: what holds for 30 more days, and for these names, stays. Files are their owner's only:
#   ca.pem  what clients trust (public)      ca.key  signs; keep it off the machines that only trust
#   broker.pem, readers.pem  the server's key and certificate
# A new one holds from the server's next start on: bash/stack.sh down, bash/stack.sh up [--realtime].
# Exit codes: 0 all hold; 1 openssl failed.
source "$(dirname "$0")/lib.sh"
umask 077
server=broker authority="card-fraud Kafka authority" setting=kafka
if [ "${1:-}" = readers ]; then
  server=readers authority="card-fraud readers authority" setting=readers
  shift
fi
folder=${1:-$("$VENV/bin/python" -c "from etl.settings import settings; print(settings().data_dir / 'secrets' / '$setting')")}
names="DNS:localhost,IP:127.0.0.1"
for name in "${@:2}"; do
  if [[ $name =~ ^[0-9.]+$|: ]]; then names+=",IP:$name"; else names+=",DNS:$name"; fi
done
mkdir -p "$folder"
cd "$folder"
made=$(mktemp -d "$folder/.made.XXXXXX")
trap 'rm -rf "$made"' EXIT

key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }
holds() { openssl x509 -in "$1" -noout -checkend $((30 * 86400)) >/dev/null 2>&1; }

if ! { holds ca.pem && [ -s ca.key ]; }; then
  key "$made/ca.key"
  openssl req -x509 -new -key "$made/ca.key" -subj "/CN=$authority" -days 3650 -out "$made/ca.pem" \
    -addext basicConstraints=critical,CA:true,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign
  mv "$made/ca.key" ca.key
  mv "$made/ca.pem" ca.pem
  log "a new authority: clients need the new $folder/ca.pem"
fi
if ! { holds "$server.pem" && openssl verify -CAfile ca.pem "$server.pem" >/dev/null 2>&1 && [ "$(cat "$server.names" 2>/dev/null)" = "$names" ]; }; then
  key "$made/key"
  printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=critical,digitalSignature\n' "$names" >"$made/extensions"
  openssl req -new -key "$made/key" -subj "/CN=$server" -out "$made/request"
  openssl x509 -req -in "$made/request" -CA ca.pem -CAkey ca.key -days 397 -extfile "$made/extensions" -out "$made/certificate" 2>"$made/log" ||
    die "openssl: $(<"$made/log")"
  cat "$made/key" "$made/certificate" >"$made/$server.pem"
  mv "$made/$server.pem" "$server.pem"
  printf '%s\n' "$names" >"$server.names"
  log "a new certificate of the $server for $names"
fi
