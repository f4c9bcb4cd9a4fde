#!/bin/sh
# Run a command against a temporary Postgres made with the programs in a folder, such as /usr/lib/postgresql/15/bin.
# The command finds it in QUEUE_PG_TEST_POSTGRES. Usage: tools/with_postgres.sh BIN COMMAND...
set -eu
bin=$1
shift
[ -x "$bin/initdb" ] || { echo "error: there is no initdb in $bin" >&2; exit 1; }

folder=$(mktemp -d "${TMPDIR:-/tmp}/queue-pg-server-XXXXXX")
as=
if [ "$(id -u)" = 0 ]; then # Postgres refuses to run as root; its packages bring an account
    chown postgres "$folder"
    as="runuser -u postgres --"
fi
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
stop() {
    $as "$bin/pg_ctl" -D "$folder/data" -m immediate -s stop || true
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM
cd /
$as "$bin/initdb" -D "$folder/data" -U postgres -A trust -E UTF8 --no-sync >"$folder/initdb.log"
cat >>"$folder/data/postgresql.conf" <<END
listen_addresses = '127.0.0.1'
port = $port
unix_socket_directories = ''
max_connections = 200
fsync = off
synchronous_commit = off
full_page_writes = off
END
$as "$bin/pg_ctl" -D "$folder/data" -l "$folder/server.log" -s -w start
cd - >/dev/null
QUEUE_PG_TEST_POSTGRES="postgresql://postgres@127.0.0.1:$port/postgres" "$@"
