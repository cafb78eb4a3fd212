package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/internal/testing/apiserver"
	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/pkg/model"
)

const (
	nodeName   = "n0"
	otherNodes = 90
	// deadline bounds whatever is waited for, on a busy machine.
	deadline = 2 * time.Minute
)

var (
	ownCIDR     = netip.MustParsePrefix("10.244.0.0/22") // 200 pods and more
	serviceCIDR = netip.MustParsePrefix("10.96.0.0/12")
)

// node is the node that is measured.
type node struct {
	dir    string
	agent  string // the program
	api    *apiserver.Store
	ovs    *vswitch.Instance
	server *http.Server
	serves chan error
	listen net.Listener
	pods   []*pod
	runs   *process
}

// startNode starts everything but the agent.
func startNode(ctx context.Context, dir, agent string) (n *node, err error) {
	n = &node{dir: dir, agent: agent, api: apiserver.NewStore(), serves: make(chan error, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.stop())
		}
	}()
	for _, d := range []string{dir, filepath.Join(dir, "logs"), filepath.Join(dir, "watch")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return n, err
		}
	}
	if err := addUnderlay(); err != nil {
		return n, err
	}
	if n.ovs, err = vswitch.Start(ctx, vswitch.Config{RunDir: filepath.Join(dir, "ovs"), DataDir: filepath.Join(dir,
		"logs")}); err != nil {
		return n, err
	}
	var lc net.ListenConfig
	if n.listen, err = lc.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return n, fmt.Errorf("serve the API: %w", err)
	}
	n.server = &http.Server{Handler: n.api.Handler(), ReadHeaderTimeout: 10 * time.Second}
	go func() { n.serves <- n.server.Serve(n.listen) }()
	files := map[string]string{
		"config.yaml": "datapath: netdev\novsRunDir: " + n.ovs.RunDir() + "\n",
		"kubeconfig": `apiVersion: v1
kind: Config
current-context: scale
clusters: [{name: scale, cluster: {server: "http://` + n.listen.Addr().String() + `"}}]
contexts: [{name: scale, context: {cluster: scale}}]
`,
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return n, err
		}
	}
	return n, n.addNodes()
}

// addUnderlay gives the namespace a link with the node's address, once.
func addUnderlay() error {
	const name = "eth0"
	if _, err := netlink.LinkByName(name); err == nil {
		return nil
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500}, PeerName: "underlay"}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the node's link: %w", err)
	}
	peer, err := netlink.LinkByName("underlay")
	if err != nil {
		return fmt.Errorf("make the node's link: %w", err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: nodeAddr(0).AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := errors.Join(netlink.LinkSetUp(peer), netlink.LinkSetUp(veth), netlink.AddrAdd(veth, address)); err != nil {
		return fmt.Errorf("set the node's link up: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600) // as on every node of a cluster
}

func nodeAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}) }

// remoteAddr is the address of a pod of another node, 1 to otherNodes.
func remoteAddr(node, number int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 245, byte(node), byte(number + 2)})
}

// addNodes fills in what every cluster has.
func (n *node) addNodes() error {
	var nodes []apiserver.Object
	for i := range otherNodes + 1 {
		cidr := ownCIDR.String()
		if i > 0 {
			cidr = netip.PrefixFrom(remoteAddr(i, -2), 24).String()
		}
		nodes = append(nodes, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: map[string]string{
				"kubernetes.io/hostname": fmt.Sprint("n", i)}},
			Spec: corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
			Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP,
				Address: nodeAddr(i).String()}}},
		})
	}
	ranges := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
		Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{serviceCIDR.String()}}}
	return errors.Join(n.api.Apply(apiserver.Nodes, nodes), n.api.Apply(apiserver.ServiceCIDRs,
		[]apiserver.Object{ranges}))
}

// stop ends everything. The namespaces end with the program.
func (n *node) stop() error {
	var errs []error
	if n.runs != nil {
		errs = append(errs, n.runs.stop())
	}
	for _, p := range n.pods {
		errs = append(errs, p.close())
	}
	if n.server != nil {
		errs = append(errs, n.server.Close())
		if err := <-n.serves; !errors.Is(err, http.ErrServerClosed) {
			errs = append(errs, err)
		}
	} else if n.listen != nil {
		errs = append(errs, n.listen.Close())
	}
	if n.ovs != nil {
		errs = append(errs, n.ovs.Stop())
	}
	return errors.Join(errs...)
}

// empty takes everything from the bridge that an agent wrote.
func (n *node) empty(ctx context.Context) error {
	for _, command := range []string{"del-flows", "del-groups"} {
		if _, err := n.ovs.Run(ctx, "ovs-ofctl", "-O", "OpenFlow15", command, model.BridgeName); err != nil {
			return err
		}
	}
	return nil
}
