# Settings of the local Kubernetes node. Source it, don't run it.
KUBE_HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$KUBE_HERE/../lib.sh"
KUBE_CACHE="$CADDY_CACHE/kube"
ROOT="$KUBE_CACHE/root"                # unpacked packages of bookworm: they are not installed
BIN="$KUBE_CACHE/bin"
STAMPS="$KUBE_CACHE/stamps"
TRIPLET="$(uname -m)-linux-gnu"

# Two flavours of node, which can run side by side:
#   packaged  Kubernetes 1.20, built from Debian's source package
#   newer     the ready server binaries in $KUBEBUILDER_ASSETS, with containerd 2 from Debian sid
SERVERS="kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy"
# what of a node $KUBEBUILDER_ASSETS lacks; envtest's folder holds only an API server, etcd and kubectl
missing_servers() { local b; for b in $SERVERS; do [ -x "${KUBEBUILDER_ASSETS:-}/$b" ] || printf ' %s' "$b"; done; }
case "${CADDY_TEST_KUBECONFIG:-}" in   # either of them may be named on purpose
  /run/caddy-kube-newer*) FLAVOUR=newer;;
  /run/caddy-kube*) FLAVOUR=packaged;;
  *) if [ -n "${KUBEBUILDER_ASSETS:-}" ] && [ -z "$(missing_servers)" ]; then FLAVOUR=newer; else FLAVOUR=packaged; fi;;
esac
if [ $FLAVOUR = newer ]; then
  NODE=caddy-kube-newer NET=36
  ROOT_NEWER="$KUBE_CACHE/root-newer"
  export PATH="${KUBEBUILDER_ASSETS:+$KUBEBUILDER_ASSETS:}$BIN:$ROOT_NEWER/usr/bin:$ROOT_NEWER/usr/sbin:$PATH"
else
  NODE=caddy-kube NET=20
  export PATH="$BIN:$ROOT/usr/sbin:$ROOT/usr/bin:$ROOT/sbin:$PATH"
fi
# CADDY_KUBE_INSTANCE (1 to 9) gives another node of the same flavour, for a second run beside the first
case "${CADDY_KUBE_INSTANCE:-}" in
  "") ;;
  [1-9]) NODE="$NODE-$CADDY_KUBE_INSTANCE" NET=$((NET + CADDY_KUBE_INSTANCE));;
  *) die "CADDY_KUBE_INSTANCE=$CADDY_KUBE_INSTANCE: it must be 1 to 9";;
esac
KUBE_RUN="/run/$NODE"                  # state of the running node: PKI, logs, pids, containerd, etcd
KUBECONFIG_FILE="$KUBE_RUN/admin.kubeconfig"
CTR_SOCK="$KUBE_RUN/containerd.sock"
CGROUP=$NODE                           # pods live under this cgroup

# The node has a network namespace of its own, so it shares no port, address, route or firewall rule with this machine
# or another cluster on it. A veth pair leads there; this machine reaches the API server, pods and Services through it.
HOST_IP=10.200.$NET.1
NODE_IP=10.200.$NET.2
API_PORT=6443
SVC_CIDR=10.$((100 + NET)).0.0/17
API_SVC_IP=10.$((100 + NET)).0.1
DNS_IP=10.$((100 + NET)).0.10
POD_CIDR=10.$((100 + NET)).128.0/24
PAUSE_IMAGE=docker.io/local/pause:1

# runc, iptables, nft and conntrack come unpacked: tell the loader and xtables where their parts are
kube_libs() {
  export LD_LIBRARY_PATH="${ROOT_NEWER:+$ROOT_NEWER/usr/lib/$TRIPLET:}$ROOT/usr/lib/$TRIPLET:$ROOT/lib/$TRIPLET"
  export XTABLES_LIBDIR="$ROOT/usr/lib/$TRIPLET/xtables"
}
in_node() { nsenter --net="/run/netns/$NODE" "$@"; }
ctr_() { ctr -a "$CTR_SOCK" -n k8s.io "$@"; }

# running NAME : is the process that was started under this name still that process, and not another with its pid?
running() { local p; p=$(cat "$KUBE_RUN/pid/$1" 2>/dev/null) && tr '\0' '\n' 2>/dev/null < "/proc/$p/environ" | grep -qx "CADDY_KUBE_PROCESS=$NODE/$1"; }
