# Helpers of the test scripts: messages, packages by name, a cache outside the checkout. Source it, don't run it.
# Everything comes from the Debian and PyPI registries as this machine has them configured; nothing else is downloaded.

# Downloads and what is built from them: kept between runs, outside the checkout.
: "${CADDY_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/caddy-cache}"
STAMPS="$CADDY_CACHE/stamps"

say() { printf '[%s] %s\n' "$(date +%H:%M:%S)" "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
secs() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN {print b - a}'; }   # since a time of date +%s.%N
# timed LABEL CMD... : says what starts, then how long it took
timed() { local l=$1 s; shift; s=$(date +%s.%N); say "$l …"; "$@"; say "$l: $(printf '%.1f s' "$(secs "$s")")"; }
# wait_for SECONDS LABEL CMD... : polls every 0.2 s
wait_for() {
  local n=$1 l=$2 end; shift 2; end=$(( $(date +%s) + n ))
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$end" ] || { echo "timed out after ${n}s: $l" >&2; return 1; }
    sleep 0.2
  done
}

# need COMMAND=PACKAGE... : installs by package name what is missing
need() {
  local missing=() p
  for p in "$@"; do command -v "${p%%=*}" >/dev/null || missing+=("${p#*=}"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] || die "please install: ${missing[*]}"
  say "installing ${missing[*]}"
  apt-get -q update >/dev/null || say "apt-get update failed; trying with the lists that are there"
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "${missing[@]}" >/dev/null || die "cannot install ${missing[*]} with apt-get"
}

# one_at_a_time LOCK : waits until no other script of ours holds LOCK, then holds it until this process ends
one_at_a_time() {
  mkdir -p "$CADDY_CACHE"
  exec 9> "$CADDY_CACHE/$1.lock"
  flock -n 9 || { say "another run holds $CADDY_CACHE/$1.lock; waiting for it"; flock 9; }
}

# === Debian packages, unpacked and not installed

# The Debian mirror that apt uses, by the label of its Release file.
mirror() { apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' | awk -v l="$1" '$1 == l {sub("/$", "", $2); print $2; exit}'; }

# apt_in SUITE APT-GET-ARGS... : apt-get with a package list of its own, so that neither other sources on the machine
# nor its release decide what is fetched
apt_in() {
  local suite=$1 d m s key=/usr/share/keyrings/debian-archive-keyring.gpg; shift
  d="$CADDY_CACHE/apt/$suite"
  local opts=(-q -o Dir::State::lists="$d/lists" -o Dir::Cache="$d/cache" -o Dir::Etc::sourceparts=- -o Dir::Etc::sourcelist="$d/sources.list"
    -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::Retries=3)
  # lists older than a day may name packages that the mirror no longer has
  if [ -z "$(find "$d/.updated" -mmin -1440 2>/dev/null)" ]; then
    m=$(mirror Debian); s=$(mirror Debian-Security)
    if [ -z "$m" ]; then apt-get -q update >/dev/null; m=$(mirror Debian); s=$(mirror Debian-Security); fi
    [ -n "$m" ] || die "apt knows no Debian mirror; check /etc/apt and run apt-get update"
    mkdir -p "$d"/{lists/partial,cache/archives/partial}
    printf "%s [signed-by=$key] $m $suite main\n" deb deb-src > "$d/sources.list"
    if [ "$suite" = bookworm ] && [ -n "$s" ]; then printf 'deb [signed-by=%s] %s bookworm-security main\n' "$key" "$s" >> "$d/sources.list"; fi
    apt-get "${opts[@]}" update >/dev/null || die "apt-get update failed for $suite"
    touch "$d/.updated"
  fi
  apt-get "${opts[@]}" "$@"
}

# unpack SUITE DIR PACKAGES... : downloads packages and unpacks them into DIR
unpack() {
  local suite=$1 dir=$2 tmp d; shift 2
  tmp=$(mktemp -d "$CADDY_CACHE/debs.XXXXXX")
  ( cd "$tmp" && apt_in "$suite" download "$@" >/dev/null ) || { rm -rf "$tmp"; die "cannot download from $suite: $*"; }
  for d in "$tmp"/*.deb; do dpkg -x "$d" "$dir" || die "cannot unpack $d"; done
  rm -rf "$tmp"
}

# === stamps: what was made from which inputs

# fresh NAME INPUTS : was NAME made from exactly these inputs?     stamp NAME INPUTS : it has been now
fresh() { [ "$(cat "$STAMPS/$1" 2>/dev/null)" = "$2" ]; }
stamp() { mkdir -p "$STAMPS"; printf '%s\n' "$2" > "$STAMPS/$1.part"; mv "$STAMPS/$1.part" "$STAMPS/$1"; }
hash_of() { sha256sum | cut -c1-16; }
# once NAME FILE INPUTS LABEL CMD... : runs CMD unless FILE was made from INPUTS already
once() {
  local n=$1 f=$2 i=$3 l=$4; shift 4
  if [ -e "$f" ] && fresh "$n" "$i"; then return; fi
  timed "$l" "$@"; stamp "$n" "$i"
}
