#!/usr/bin/env bash
# `make test-fresh`: a stranger's machine. In a folder it makes a bare Debian by debootstrap, copies this tree into it, and there:
#   1. an ordinary user runs set-up, and must be told in one sentence what an administrator has to install
#   2. root runs deployments/image.sh, which is what the Dockerfile runs; it may install what that sentence names, and nothing else
#   3. root runs `make pretrain PRESET=smoke` and `make down`
#   4. an ordinary user does the same in a clone of his own, from nothing but the downloads of step 2
#   5. a user without an account or rights in root's clone runs `bessemer`, as a container of the image does
# Each must succeed and leave no process. It needs root, debootstrap, a network, 20 GB and half an hour for each system.
#
#   SYSTEMS    the Debians to try: "bookworm trixie"
#   FOLDER     where they are made, and removed at the end: /var/tmp
#   DOWNLOADS  a folder that keeps uv's and pip's downloads from one system to the next; without it each fetches everything
#   MIRROR     of Debian; without it debootstrap's own
# No other variable of yours reaches the inside, except those in PASSED. pip's files and find-links do not: a stranger has none.
set -euo pipefail
PASSED="http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY PIP_INDEX_URL PIP_TRUSTED_HOST PIP_DEFAULT_TIMEOUT TORCH BESSEMER_PORT"
CLONE=$(cd "$(dirname "$0")/../.." && pwd)

main() {
    [ "$(id -u)" = 0 ] || refuse "it needs root: a system of its own is mounted and entered"
    command -v debootstrap >/dev/null || refuse "it needs debootstrap: apt-get install debootstrap"
    for system in ${SYSTEMS:-bookworm trixie}; do try "$system"; done
}

refuse() {
    echo "test-fresh: $1" >&2
    exit 2
}

try() { # in namespaces for mounts and processes: whatever ends this script ends all processes inside, and the mounts go with them
    root=$(mktemp -d "${FOLDER:-/var/tmp}/bessemer-fresh-$1.XXXXXX")
    trap 'end; exit 130' INT TERM
    trap end EXIT
    mkdir "$root/bessemer" "$root/downloads"
    if [ -d "${DOWNLOADS:-}" ]; then
        echo "fresh   $1: downloads of earlier systems are at hand, from $DOWNLOADS"
        mv -T "$DOWNLOADS" "$root/downloads" # not mounted: uv links packages into .venv only within one mount
    fi
    # A shell makes its background processes ignore SIGINT, and the services would inherit that.
    setpriv --pdeathsig KILL env --default-signal=INT,QUIT \
        unshare --mount --pid --fork --kill-child "$CLONE/tests/deployments/fresh.sh" inside "$1" "$root" &
    namespaces=$!
    wait "$namespaces"
    end
}

end() {
    trap - EXIT INT TERM
    [ -z "${namespaces:-}" ] || kill -KILL "$namespaces" 2>/dev/null || true
    wait
    [ -z "${DOWNLOADS:-}" ] || mv -T "$root/downloads" "$DOWNLOADS"
    rm -rf --one-file-system "$root" "$root.log"
}

inside() { # system root
    system=$1 root=$2
    trap 'exit 130' INT TERM # the first process of a namespace gets only the signals that it handles
    step "$system: debootstrap" debootstrap --variant=minbase "$system" "$root" ${MIRROR:+"$MIRROR"} >"$root.log"
    prepare
    step "$system: a user without root's packages is refused" refused_in_a_sentence
    step "$system: root, deployments/image.sh" enter 0 /bessemer deployments/image.sh
    installed_what_the_sentence_names
    sizes "root's"
    step "$system: root, make pretrain PRESET=smoke" enter 0 /bessemer make pretrain PRESET=smoke
    step "$system: root, make down" enter 0 /bessemer make down
    no_process_is_left
    chroot "$root" useradd --create-home --uid 1001 --shell /bin/sh stranger
    cp -a "$root/pristine" "$root/home/stranger/bessemer"
    chroot "$root" chown -R stranger: /home/stranger /downloads
    step "$system: an ordinary user, make pretrain PRESET=smoke" enter 1001 /home/stranger/bessemer make pretrain PRESET=smoke
    step "$system: an ordinary user, make down" enter 1001 /home/stranger/bessemer make down
    no_process_is_left
    mount -o remount,size=64m "$root/dev/shm" # as a container has it
    step "$system: a user of the image, bessemer run pretrain --preset smoke" enter 1000 /data bessemer run pretrain --preset smoke
    no_process_is_left
    echo "fresh   $system: all of it works"
}

prepare() {
    chmod 755 "$root"
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o mode=755 dev "$root/dev"
    for each in null zero full random urandom tty; do
        touch "$root/dev/$each"
        mount --bind "/dev/$each" "$root/dev/$each"
    done
    ln -s /proc/self/fd "$root/dev/fd"
    mkdir "$root/dev/shm" "$root/dev/pts"
    mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    mount --rbind -o ro /sys "$root/sys"
    printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$(hostname)" >"$root/etc/hosts"
    (cd "$CLONE" && git ls-files -z --cached --others --exclude-standard | xargs -0 ls -d 2>/dev/null | tar -cT -) | tar -xC "$root/bessemer" --no-same-owner
    cp -a "$root/bessemer" "$root/pristine"
    chown -R 0:0 "$root/downloads" # pip does not use a folder of another user
    [ -z "${SSL_CERT_FILE:-}" ] || cp "$SSL_CERT_FILE" "$root/etc/certificates-of-the-caller.crt"
}

enter() { # user id, folder, command …: with the environment of a first log-in, or (user 1000) of the image
    local name user=$1 folder=$2 path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    local given=("PATH=$path" HOME=/root UV_CACHE_DIR=/downloads/uv PIP_CACHE_DIR=/downloads/pip)
    shift 2
    [ "$user" != 1001 ] || given+=(HOME=/home/stranger)
    [ "$user" != 1000 ] || for name in $(sed -n 's/^ENV //p' "$CLONE/Dockerfile"); do given+=("${name//\$PATH/$path}"); done
    for name in $PASSED; do [ -z "${!name:-}" ] || given+=("$name=${!name}"); done
    if [ -n "${SSL_CERT_FILE:-}" ]; then
        for name in SSL_CERT_FILE PIP_CERT REQUESTS_CA_BUNDLE CURL_CA_BUNDLE; do given+=("$name=/etc/certificates-of-the-caller.crt"); done
    fi
    env -i "${given[@]}" chroot --userspec="$user:$user" --groups="$user" "$root" sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
}

step() { # name, command …
    local name=$1 start=$SECONDS
    shift
    echo "fresh   $name …" >&2 # the output may go to a file
    "$@" || { echo "fresh   $name: failed with $?" >&2; exit 1; }
    echo "fresh   $name: $((SECONDS - start)) s" >&2
}

refused_in_a_sentence() {
    cp -a "$root/pristine" "$root/refused"
    chown -R 1000:1000 "$root/refused"
    local status=0
    enter 1000 /refused deployments/setup.sh 2>"$root/sentence" || status=$?
    cat "$root/sentence"
    [ "$status" = 2 ] && [ "$(wc -l <"$root/sentence")" = 1 ] && grep -q 'as root.*: apt-get install -y' "$root/sentence" || return 1
    sed 's/.*--no-install-recommends //' "$root/sentence" | tr ' ' '\n' | sort >"$root/named"
    chroot "$root" apt-mark showmanual | sort >"$root/before"
}

installed_what_the_sentence_names() {
    chroot "$root" apt-mark showmanual | sort | comm -13 "$root/before" - | grep -vx 'make\|ca-certificates' >"$root/installed"
    diff "$root/named" "$root/installed" || { echo "fresh   $system: root's set-up installed other packages (>) than the sentence names (<)" >&2; exit 1; }
}

sizes() {
    for each in bessemer downloads; do echo "fresh   $system: $1 /$each has $(du -sm "$root/$each" | cut -f 1) MB"; done
    echo "fresh   $system: the whole system has $(du -smx "$root" | cut -f 1) MB"
}

no_process_is_left() {
    local each words # read by this shell itself, which is process 1: another one would be found
    for each in "$root"/proc/[0-9]*; do
        mapfile -d '' words 2>/dev/null <"$each/cmdline" || continue
        [ "${each##*/}" = 1 ] || [ -z "${words[*]}" ] || { echo "fresh   $system: still running: ${words[*]}" >&2; exit 1; }
    done
}

if [ "${1:-}" = inside ]; then inside "$2" "$3"; else main; fi
exit # bash reads on in a file that changes meanwhile
