# Makes the node's certificates and kubeconfigs in $KUBE_RUN/pki. Sourced by node-up.
pki() {
  local d="$KUBE_RUN/pki"; mkdir -p "$d"; [ ! -e "$d/.done" ] || return 0
  ( set -e; cd "$d"
    key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key" 2>/dev/null; }
    ca() { # NAME COMMON-NAME
      key "$1"; openssl req -x509 -new -key "$1.key" -sha256 -days 3650 -subj "/CN=$2" -out "$1.crt" \
        -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign,digitalSignature'
    }
    cert() { # NAME CA SUBJECT USAGE [SANS]
      key "$1"
      openssl req -new -key "$1.key" -subj "$3" -out "$1.csr"
      { echo "keyUsage=critical,digitalSignature,keyEncipherment"; echo "extendedKeyUsage=$4"; [ -z "${5:-}" ] || echo "subjectAltName=$5"; } > "$1.ext"
      openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days 3650 -sha256 -extfile "$1.ext" -out "$1.crt" 2>/dev/null
      rm -f "$1.csr" "$1.ext"
    }
    kubeconfig() { # NAME
      cat > "$KUBE_RUN/$1.kubeconfig" <<K
apiVersion: v1
kind: Config
clusters: [{name: $NODE, cluster: {server: "https://$NODE_IP:$API_PORT", certificate-authority-data: $(base64 -w0 < ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 < "$1.crt"), client-key-data: $(base64 -w0 < "$1.key")}}]
contexts: [{name: $NODE, context: {cluster: $NODE, user: $1}}]
current-context: $NODE
K
      chmod 600 "$KUBE_RUN/$1.kubeconfig"
    }
    ca ca kubernetes-ca; ca front-proxy-ca front-proxy-ca
    key sa; openssl ec -in sa.key -pubout -out sa.pub 2>/dev/null
    svc=kubernetes.default.svc
    cert apiserver ca /CN=kube-apiserver serverAuth "IP:$NODE_IP,IP:127.0.0.1,IP:$API_SVC_IP,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:$svc,DNS:$svc.cluster.local"
    cert apiserver-kubelet-client ca /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
    cert front-proxy-client front-proxy-ca /CN=front-proxy-client clientAuth
    cert admin ca /O=system:masters/CN=kubernetes-admin clientAuth
    cert controller-manager ca /CN=system:kube-controller-manager clientAuth
    cert scheduler ca /CN=system:kube-scheduler clientAuth
    cert proxy ca /CN=system:kube-proxy clientAuth
    cert dns ca /CN=system:kube-dns-lite clientAuth
    cert kubelet ca "/O=system:nodes/CN=system:node:$NODE" clientAuth
    cert kubelet-server ca "/O=system:nodes/CN=system:node:$NODE" serverAuth "IP:$NODE_IP,DNS:$NODE"
    for n in admin controller-manager scheduler proxy dns kubelet; do kubeconfig $n; done
    touch .done )
}
