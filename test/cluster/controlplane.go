package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/cluster/pki"
	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

const (
	etcdPort     = 2379
	etcdPeerPort = 2380
	frontProxy   = "front-proxy-client"
)

// paths are the places in the state directory.
type paths string

func (d paths) join(parts ...string) string {
	return filepath.Join(append([]string{string(d)}, parts...)...)
}
func (d paths) pki() string                   { return d.join("pki") }
func (d paths) cert(name string) pki.Pair     { return pki.PairIn(d.pki(), name) }
func (d paths) log(program string) string     { return d.join("logs", program+".log") }
func (d paths) kubeconfig(user string) string { return d.join("pki", user+".kubeconfig") }
func (d paths) image(name string) string      { return d.join("images", name+".tar") }
func (d paths) node(name string, parts ...string) string {
	return d.join(append([]string{"nodes", name}, parts...)...)
}

// apiServerNames are what the API server's certificate is valid for.
func apiServerNames(plan state.Plan) pki.Request {
	r := pki.Request{Name: "apiserver", User: "kube-apiserver",
		DNS: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + clusterDomain, "localhost"},
		Addrs: append(state.Addrs(plan.ControlPlane()), plan.KubernetesServices()...)}
	return r
}

// writeCredentials makes all certificates, keys and kubeconfigs of the cluster.
func writeCredentials(dir paths, plan state.Plan, nodes []state.Node) error {
	ca, err := pki.NewAuthority(dir.pki(), "ca")
	if err != nil {
		return err
	}
	// etcd trusts an authority of its own: a client with a certificate of the cluster's must not read its data.
	etcdCA, err := pki.NewAuthority(dir.pki(), "etcd-ca")
	if err != nil {
		return err
	}
	if _, err := etcdCA.Issue(pki.Request{Name: "etcd", User: "etcd",
		Addrs: state.Addrs(plan.ControlPlane())}); err != nil {
		return err
	}
	if _, err := etcdCA.Issue(pki.Request{Name: "apiserver-etcd", User: "kube-apiserver"}); err != nil {
		return err
	}
	// The API server calls extension API servers on behalf of users, which they believe of this authority's clients only.
	proxyCA, err := pki.NewAuthority(dir.pki(), "front-proxy-ca")
	if err != nil {
		return err
	}
	if _, err := proxyCA.Issue(pki.Request{Name: "front-proxy", User: frontProxy}); err != nil {
		return err
	}
	if _, err := pki.WriteKeyPair(dir.pki(), "service-account"); err != nil {
		return err
	}
	requests := []pki.Request{
		apiServerNames(plan),
		{Name: "apiserver-kubelet", User: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}},
		{Name: "admin", User: "kubernetes-admin", Groups: []string{"system:masters"}},
		{Name: "controller-manager", User: "system:kube-controller-manager"},
		{Name: "scheduler", User: "system:kube-scheduler"},
	}
	for _, n := range nodes {
		requests = append(requests, pki.Request{Name: n.Name, User: "system:node:" + n.Name, Groups: []string{"system:nodes"},
			DNS: []string{n.Name}, Addrs: n.Addrs})
	}
	for _, r := range requests {
		pair, err := ca.Issue(r)
		if err != nil {
			return err
		}
		if err := writeKubeconfig(dir.kubeconfig(r.Name), plan, dir.cert("ca").Cert, pair); err != nil {
			return err
		}
	}
	return os.Symlink(dir.kubeconfig("admin"), dir.join("kubeconfig"))
}

// addrPort writes an address and a port as URLs and flags want them.
func addrPort(addr netip.Addr, port int) string {
	return netip.AddrPortFrom(addr, uint16(port)).String()
}

// list writes values as comma-separated flags want them.
func list[T fmt.Stringer](values []T) string { return strings.Join(texts(values), ",") }

func texts[T fmt.Stringer](values []T) []string {
	var texts []string
	for _, v := range values {
		texts = append(texts, v.String())
	}
	return texts
}

func etcdArgs(dir paths, plan state.Plan) []string {
	host := plan.ControlPlane()[0].Addr()
	client, peer := "https://"+addrPort(host, etcdPort), "https://"+addrPort(host, etcdPeerPort)
	cert := dir.cert("etcd")
	return []string{
		"--name=" + plan.Name,
		"--data-dir=" + dir.join("etcd"),
		"--listen-client-urls=" + client,
		"--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer,
		"--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=" + plan.Name + "=" + peer,
		"--cert-file=" + cert.Cert, "--key-file=" + cert.Key,
		"--peer-cert-file=" + cert.Cert, "--peer-key-file=" + cert.Key,
		"--client-cert-auth", "--trusted-ca-file=" + dir.cert("etcd-ca").Cert,
		"--peer-client-cert-auth", "--peer-trusted-ca-file=" + dir.cert("etcd-ca").Cert,
		// A test cluster does not outlive the machine's crash, so its data need not.
		"--unsafe-no-fsync",
		"--log-level=warn",
	}
}

func apiServerArgs(dir paths, plan state.Plan) []string {
	host := plan.ControlPlane()[0].Addr()
	serving, kubelet, etcd, proxy := dir.cert("apiserver"), dir.cert("apiserver-kubelet"), dir.cert("apiserver-etcd"),
		dir.cert("front-proxy")
	return []string{
		"--advertise-address=" + host.String(),
		"--bind-address=" + host.String(),
		"--secure-port=" + strconv.Itoa(state.APIPort),
		"--etcd-servers=https://" + addrPort(host, etcdPort),
		"--etcd-cafile=" + dir.cert("etcd-ca").Cert, "--etcd-certfile=" + etcd.Cert, "--etcd-keyfile=" + etcd.Key,
		"--client-ca-file=" + dir.cert("ca").Cert,
		"--tls-cert-file=" + serving.Cert, "--tls-private-key-file=" + serving.Key,
		"--kubelet-certificate-authority=" + dir.cert("ca").Cert,
		"--kubelet-client-certificate=" + kubelet.Cert, "--kubelet-client-key=" + kubelet.Key,
		"--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + dir.cert("front-proxy-ca").Cert,
		"--requestheader-allowed-names=" + frontProxy,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		// Webhooks and extension API servers are called at their pods: nothing here translates cluster IPs.
		"--enable-aggregator-routing=true",
		"--proxy-client-cert-file=" + proxy.Cert, "--proxy-client-key-file=" + proxy.Key,
		"--service-account-issuer=https://kubernetes.default.svc." + clusterDomain,
		"--service-account-key-file=" + dir.join("pki", "service-account.pub"),
		"--service-account-signing-key-file=" + dir.cert("service-account").Key,
		"--service-cluster-ip-range=" + list(plan.Services()),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
	}
}

func controllerManagerArgs(dir paths, plan state.Plan) []string {
	kubeconfig := dir.kubeconfig("controller-manager")
	args := []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=" + plan.ControlPlane()[0].Addr().String(),
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + dir.cert("service-account").Key,
		"--root-ca-file=" + dir.cert("ca").Cert,
		"--cluster-signing-cert-file=" + dir.cert("ca").Cert, "--cluster-signing-key-file=" + dir.cert("ca").Key,
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + list(plan.Pods()),
		"--service-cluster-ip-range=" + list(plan.Services()),
	}
	mask4, mask6 := strconv.Itoa(state.NodeMaskV4), strconv.Itoa(state.NodeMaskV6)
	switch plan.Family {
	case state.Dual:
		return append(args, "--node-cidr-mask-size-ipv4="+mask4, "--node-cidr-mask-size-ipv6="+mask6)
	case state.IPv6:
		return append(args, "--node-cidr-mask-size="+mask6)
	default:
		return append(args, "--node-cidr-mask-size="+mask4)
	}
}

func schedulerArgs(dir paths, plan state.Plan) []string {
	kubeconfig := dir.kubeconfig("scheduler")
	return []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=" + plan.ControlPlane()[0].Addr().String(),
		"--leader-elect=false",
	}
}

// startMember starts a host on the underlay that has these addresses and no Open vSwitch.
func startMember(ctx context.Context, c state.Cluster, name string, addrs []netip.Prefix) (sandbox.Node, error) {
	n, err := sandbox.Group(c.Plan.Name).Start(name, sandbox.Files{})
	if err != nil {
		return n, err
	}
	if err := c.Datapath.Attach(ctx, c.Underlay, n); err != nil {
		return n, err
	}
	return n, c.Datapath.Address(n, addrs, nil)
}

// startControlPlane starts etcd and the three Kubernetes programs, and what gives them routes to pods. It returns
// when the API server is ready.
func startControlPlane(ctx context.Context, repo string, c state.Cluster,
	detail func(string)) (map[string]sandbox.Process, error) {
	dir, plan := paths(c.Dir), c.Plan
	routes, err := testenv.Program(ctx, repo, "./test/cluster/routes", dir.join("bin"))
	if err != nil {
		return nil, err
	}
	started := map[string]sandbox.Process{}
	run := func(path string, args []string, ready func(context.Context) error) error {
		program := filepath.Base(path)
		detail("starting " + program)
		d := sandbox.Daemon{Args: append([]string{path}, args...), Log: dir.log(program)}
		running, err := c.ControlPlane.StartDaemon(d)
		if err != nil {
			return err
		}
		started[program] = running.Process
		if ready == nil {
			return nil
		}
		return waitReady(ctx, running, program, d.Log, ready)
	}
	component := func(program string) string { return filepath.Join(c.Components, program) }
	etcdReady := func(ctx context.Context) error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addrPort(plan.ControlPlane()[0].Addr(),
			etcdPort))
		if err != nil {
			return err
		}
		return conn.Close()
	}
	apiReady := func(ctx context.Context) error {
		_, err := kubectl(ctx, c, "get", "--raw", "/readyz")
		return err
	}
	if err := run(component("etcd"), etcdArgs(dir, plan), etcdReady); err != nil {
		return nil, err
	}
	if err := run(component("kube-apiserver"), apiServerArgs(dir, plan), apiReady); err != nil {
		return nil, err
	}
	if err := run(component("kube-controller-manager"), controllerManagerArgs(dir, plan), nil); err != nil {
		return nil, err
	}
	if err := run(component("kube-scheduler"), schedulerArgs(dir, plan), nil); err != nil {
		return nil, err
	}
	if err := run(routes, []string{"--kubeconfig=" + dir.kubeconfig("admin")}, nil); err != nil {
		return nil, err
	}
	detail("")
	return started, nil
}
