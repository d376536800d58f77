# Configuration files of the node's parts, printed. Sourced by node-up. Kubernetes 1.20 and newer ones differ in what they know.

# gates of 1.20 that later became the default
GATES=BoundServiceAccountTokenVolume=true,TTLAfterFinished=true,EphemeralContainers=true

# Every pod hangs on a veth of its own and is routed, not bridged: no dependency on the kernel's bridge filter.
cni_config() {
  local v=0.4.0; [ "$FLAVOUR" = packaged ] || v=1.0.0
  cat <<K
{"cniVersion": "$v", "name": "$NODE", "plugins": [
  {"type": "ptp", "ipMasq": false,
   "ipam": {"type": "host-local", "dataDir": "$KUBE_RUN/cni/ipam", "ranges": [[{"subnet": "$POD_CIDR"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
K
}

containerd_config() {
  cat <<K
root = "$KUBE_RUN/containerd/root"
state = "$KUBE_RUN/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri"]
K
  if [ "$FLAVOUR" = packaged ]; then cat <<K
version = 2
[grpc]
  address = "$CTR_SOCK"
[plugins."io.containerd.internal.v1.opt"]
  path = "$KUBE_RUN/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE_IMAGE"
  stream_server_address = "127.0.0.1"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$ROOT/usr/lib/cni"
    conf_dir = "$KUBE_RUN/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "$ROOT/usr/sbin/runc"
      Root = "$KUBE_RUN/runc"
      SystemdCgroup = false
K
  else cat <<K
version = 3
[grpc]
  address = "$CTR_SOCK"
[plugins."io.containerd.internal.v1.opt"]
  path = "$KUBE_RUN/containerd/opt"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "$PAUSE_IMAGE"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["$ROOT_NEWER/usr/lib/cni"]
    conf_dir = "$KUBE_RUN/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "$ROOT/usr/sbin/runc"
      Root = "$KUBE_RUN/runc"
      SystemdCgroup = false
K
  fi
}

kubelet_config() {
  cat <<K
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: "$NODE_IP"
port: 10250
readOnlyPort: 0
healthzBindAddress: 127.0.0.1
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: "$KUBE_RUN/pki/ca.crt"}}
authorization: {mode: Webhook}
tlsCertFile: "$KUBE_RUN/pki/kubelet-server.crt"
tlsPrivateKeyFile: "$KUBE_RUN/pki/kubelet-server.key"
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
failSwapOn: false
clusterDNS: ["$DNS_IP"]
clusterDomain: cluster.local
resolvConf: "$KUBE_RUN/resolv.conf"
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%", nodefs.inodesFree: "1%"}
nodeStatusUpdateFrequency: 4s
syncFrequency: 10s
volumePluginDir: "$KUBE_RUN/kubelet/volumeplugins"
serializeImagePulls: false
K
  if [ "$FLAVOUR" = packaged ]; then
    echo "featureGates: {${GATES//=/: }}" | sed 's/,/, /g'
  else
    printf '%s\n' "containerRuntimeEndpoint: \"unix://$CTR_SOCK\"" "failCgroupV1: false" "makeIPTablesUtilChains: false" "podLogsDir: \"$KUBE_RUN/podlogs\""
  fi
}

proxy_config() {
  local mode=iptables; [ "$FLAVOUR" = packaged ] || mode=nftables
  cat <<K
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: "$NODE_IP"
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
clientConnection: {kubeconfig: "$KUBE_RUN/proxy.kubeconfig"}
clusterCIDR: "$POD_CIDR"
hostnameOverride: "$NODE"
mode: $mode
conntrack: {maxPerCore: 0, min: 0, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 0s}
K
}

pause_image() {
  local r="$KUBE_CACHE/pause.root"
  rm -rf "$r"; mkdir -p "$r"
  install -m 755 "$BIN/kube-pause" "$r/pause"
  python3 "$HERE/oci.py" --name "$PAUSE_IMAGE" --root "$r" --out "$KUBE_CACHE/pause.tar" --entrypoint /pause --user 65534:65534 >/dev/null
  ctr_ images import "$KUBE_CACHE/pause.tar" >/dev/null
  rm -rf "$r"
}
