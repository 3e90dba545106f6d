#!/bin/sh
# Makes the keys of the composed cluster that are missing, and gives every process what it needs of them: all
# certificates, and its own private key. Running it again changes nothing, and spreads what `kvcli keys` has changed
# in the operator's directory meanwhile; processes notice within a second (docs/security.md section 6).
#
# keys.sh [ROOT]     ROOT/operator has everything, ROOT/NAME is filled for NAME if it is there; ROOT is /keys unless given
set -eu
umask 077
root=${1:-/keys}
operator=$root/operator

add() { # NAME and options of kvcli keys add
    [ -f "$operator/certificates/$1.json" ] || kvcli --quiet keys add "$operator" "$@"
}

put() { # FILE DIRECTORY: as a whole, so that nobody reads half of it
    cmp -s "$1" "$2/${1##*/}" || { cp -p "$1" "$2/.new" && mv "$2/.new" "$2/${1##*/}"; }
}

[ -d "$operator/certificates" ] || kvcli --quiet keys init "$operator"
add admin --role admin
for store in store1 store2 store3; do
    add "$store" --role node --address "$store"
done
add router1 --role router --address router1:7100 --address "127.0.0.1:${RINGKV_PORT1:-7100}"
add router2 --role router --address router2:7100 --address "127.0.0.1:${RINGKV_PORT2:-7101}"
add monitor --role monitor

for own in "$root"/*; do
    name=${own##*/}
    [ "$name" != operator ] || continue
    mkdir -p "$own/private" "$own/certificates"
    put "$operator/private/$name.key" "$own/private"
    for certificate in "$operator"/certificates/*.json; do
        put "$certificate" "$own/certificates"
    done
    for certificate in "$own"/certificates/*.json; do
        [ -f "$operator/certificates/${certificate##*/}" ] || rm "$certificate"
    done
done
[ "$(id -u)" != 0 ] || chown -R 10001:10001 "$root"/* # the user of the containers; ROOT itself is read-only there
