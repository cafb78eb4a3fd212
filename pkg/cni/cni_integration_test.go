//go:build integration

package cni_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

func TestAddCheckDel(t *testing.T) {
	n := newNode(t, "10.20.0.0/24", "fd20::/64")
	list := n.conf("1.1.0", `, "dns": {"nameservers": ["10.96.0.10"]}`)
	p := n.pod("web-0")
	r := n.mustAdd(list, p)

	atts := n.attached()
	if len(atts) != 1 {
		t.Fatalf("attachments %v", atts)
	}
	att := atts[0]
	want := model.Attachment{
		ContainerID: p.rt.ContainerID, IfName: "eth0", HostIfName: att.HostIfName, OFPort: model.PortPodMin,
		Pod: model.PodRef{Namespace: "default", Name: "web-0", UID: "uid-" + p.rt.ContainerID}, NetNS: p.rt.NetNS,
		MAC: model.MAC{0x0a, 0x58, 10, 20, 0, 2},
		IPs: []netip.Addr{netip.MustParseAddr("10.20.0.2"), netip.MustParseAddr("fd20::2")},
	}
	if fmt.Sprint(att) != fmt.Sprint(want) || !strings.HasPrefix(att.HostIfName, "web-0-") {
		t.Errorf("recorded %+v, want %+v", att, want)
	}
	if got := n.flows.present[att.Key()]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("flows for %+v", got)
	}
	text := fmt.Sprint(r.Interfaces[0].Name, r.Interfaces[0].Sandbox, r.Interfaces[1].Name, r.Interfaces[1].Mac,
		r.Interfaces[1].Sandbox, r.DNS.Nameservers)
	if wantText := fmt.Sprint(att.HostIfName, "", "eth0", att.MAC, p.rt.NetNS, []string{"10.96.0.10"}); text != wantText {
		t.Errorf("result %s, want %s", text, wantText)
	}
	for i, wantIP := range []string{"{Interface:1 Address:10.20.0.2/24 Gateway:10.20.0.1} 0.0.0.0/0 10.20.0.1",
		"{Interface:1 Address:fd20::2/64 Gateway:fd20::1} ::/0 fd20::1"} {
		ip, route := r.IPs[i], r.Routes[i]
		if got := fmt.Sprintf("{Interface:%d Address:%s Gateway:%s} %s %s", *ip.Interface, ip.Address.String(), ip.Gateway,
			route.Dst.String(), route.GW); got != wantIP {
			t.Errorf("result has %s, want %s", got, wantIP)
		}
	}
	wantPodInterface(t, p, att)
	host, err := netlink.LinkByName(att.HostIfName)
	check(t, err)
	if a := host.Attrs(); a.Group != cni.GroupAttached || a.MTU != 1400 || a.RawFlags&syscall.IFF_NOARP == 0 ||
		a.HardwareAddr.String() != r.Interfaces[0].Mac {
		t.Errorf("the node's end: %+v", a)
	}
	if v6, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + att.HostIfName + "/disable_ipv6"); err != nil ||
		string(v6) != "1\n" {
		t.Errorf("IPv6 on the node's end: %q, %v", v6, err)
	}

	check(t, n.libcni.CheckNetworkList(n.ctx, list, p.rt))
	_, err = n.add(list, p)
	wantCode(t, err, cni.ErrAlreadyAttached, "already attached")
	check(t, n.libcni.CheckNetworkList(n.ctx, list, p.rt))

	n.mustDel(list, p)
	n.wantNothing()
	n.mustDel(list, p)
	// The address that was freed last is reused last.
	if r := n.mustAdd(list, p); r.IPs[0].Address.IP.String() != "10.20.0.3" || r.IPs[1].Address.IP.String() != "fd20::3" {
		t.Errorf("addresses %v were reused at once", r.IPs)
	}
	if port := n.attached()[0].OFPort; port != model.PortPodMin+1 {
		t.Errorf("port number %d was reused at once", port)
	}
	n.mustDel(list, p)
	n.wantNothing()
}

func wantPodInterface(t *testing.T, p *pod, att model.Attachment) {
	t.Helper()
	check(t, p.netns.Do(func(ns.NetNS) error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if a := link.Attrs(); a.MTU != 1400 || a.Flags&net.FlagUp == 0 || a.HardwareAddr.String() != att.MAC.String() {
			t.Errorf("the pod's end: %+v", a)
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if a.IP.IsGlobalUnicast() && a.Flags&syscall.IFA_F_TENTATIVE != 0 {
				t.Errorf("address %v is still tentative", a)
			}
		}
		for _, dst := range []string{"192.0.2.1", "2001:db8::1"} {
			routes, err := netlink.RouteGet(net.ParseIP(dst))
			if err != nil || len(routes) == 0 || routes[0].Gw == nil {
				t.Errorf("route to %s: %v, %v", dst, routes, err)
			}
		}
		if ra, err := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/accept_ra"); err != nil || string(ra) != "0\n" {
			t.Errorf("accept_ra %q, %v", ra, err)
		}
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		features, err := e.Features("eth0")
		if err != nil {
			return err
		}
		for _, f := range []string{"tx-checksum-ip-generic", "tx-checksum-sctp", "tx-tcp-segmentation"} {
			if features[f] {
				t.Errorf("%s is on", f)
			}
		}
		return nil
	}))
}

func TestKernelDatapathKeepsOffloads(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	n.set(func(s *cni.Settings) { s.UserspaceDatapath = false })
	p := n.pod("web")
	n.mustAdd(n.conf("1.0.0", ""), p)
	check(t, p.netns.Do(func(ns.NetNS) error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		features, err := e.Features("eth0")
		if !features["tx-checksum-ip-generic"] {
			t.Error("TX checksum offload is off")
		}
		return err
	}))
}

func TestEveryVersion(t *testing.T) {
	n := newNode(t, "10.20.0.0/24", "fd20::/64")
	for _, version := range []string{"", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		list := n.conf(version, "")
		p := n.pod("web")
		raw, err := n.libcni.AddNetworkList(n.ctx, list, p.rt)
		if err != nil {
			t.Fatalf("ADD in version %q: %v", version, err)
		}
		want := version
		if want == "" {
			want = "0.1.0"
		}
		r, err := current.NewResultFromResult(raw)
		if err != nil || raw.Version() != want || len(r.IPs) != 2 {
			t.Errorf("version %q: result in version %q with addresses %v, %v", version, raw.Version(), r.IPs, err)
		}
		if version >= "0.4.0" {
			if err := n.libcni.CheckNetworkList(n.ctx, list, p.rt); err != nil {
				t.Errorf("CHECK in version %q: %v", version, err)
			}
		}
		n.mustDel(list, p)
	}
	n.wantNothing()
	_, err := n.run("ADD",
		fmt.Sprintf(`{"cniVersion": "9.9.9", "name": "weft", "type": "weft-cni", "socket": %q}`,
			n.socket), "CNI_CONTAINERID=x", "CNI_NETNS=/proc/self/ns/net", "CNI_IFNAME=eth0")
	wantCode(t, err, types.ErrIncompatibleCNIVersion, "")
	info, err := n.libcni.GetVersionInfo(n.ctx, "weft-cni")
	check(t, err)
	if got := fmt.Sprint(info.SupportedVersions()); got != "[0.1.0 0.2.0 0.3.0 0.3.1 0.4.0 1.0.0 1.1.0]" {
		t.Errorf("VERSION says %s", got)
	}
}

func TestMalformedConfiguration(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	p := n.pod("web")
	env := []string{"CNI_CONTAINERID=c", "CNI_IFNAME=eth0", "CNI_NETNS=" + p.rt.NetNS}
	for _, tc := range []struct {
		name, conf string
		env        []string
		code       uint
		contains   string
	}{
		{"not JSON", `{`, env, types.ErrDecodingFailure, ""},
		{"no name", `{"cniVersion": "1.0.0", "type": "weft-cni"}`, env, types.ErrInvalidNetworkConfig, "name"},
		{"another name", `{"cniVersion": "1.0.0", "name": "other", "type": "weft-cni", SOCKET}`, env,
			types.ErrInvalidNetworkConfig, `must be called "weft"`},
		{"unknown key", `{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "mtuu": 9, SOCKET}`, env,
			types.ErrUnsupportedField, `"mtuu" (value 9)`},
		{"ipam", `{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "ipam": {"type": "host-local"}, SOCKET}`, env,
			types.ErrUnsupportedField, "host-local"},
		{"unknown capability",
			`{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "runtimeConfig": {"ips": ["10.20.0.9"]}, SOCKET}`,
			env, types.ErrUnsupportedField, "runtimeConfig.ips"},
		{"wrong type", `{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "dns": 3, SOCKET}`, env,
			types.ErrInvalidNetworkConfig, "dns"},
		{"bad socket", `{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "socket": 3}`, env,
			types.ErrInvalidNetworkConfig, "socket"},
		{"prevResult",
			`{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "prevResult": {"cniVersion": "1.0.0"}, SOCKET}`,
			env, types.ErrInvalidNetworkConfig, "first plugin"},
		{"multicast MAC",
			`{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "runtimeConfig": {"mac": "01:00:00:00:00:01"}, SOCKET}`,
			env, types.ErrInvalidNetworkConfig, "multicast"},
		{"no interface name", `{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", SOCKET}`,
			[]string{"CNI_CONTAINERID=c", "CNI_NETNS=x"}, types.ErrInvalidEnvironmentVariables, "CNI_IFNAME"},
		{"bad CNI_ARGS", `{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", SOCKET}`, append(env, "CNI_ARGS=X=1"),
			types.ErrInvalidEnvironmentVariables, "CNI_ARGS"},
		{"pod without namespace", `{"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", SOCKET}`,
			append(env, "CNI_ARGS=K8S_POD_NAME=x"), types.ErrInvalidEnvironmentVariables, "K8S_POD_NAMESPACE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := n.run("ADD", strings.ReplaceAll(tc.conf, "SOCKET", fmt.Sprintf(`"socket": %q`, n.socket)), tc.env...)
			wantCode(t, err, tc.code, tc.contains)
		})
	}
	n.wantNothing()
}

func TestNetns(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.conf("1.0.0", "")
	p := n.pod("web")
	file := n.dir + "/file"
	check(t, os.WriteFile(file, nil, 0o644))
	for _, tc := range []struct {
		path     string
		code     uint
		contains string
	}{
		{"/var/run/netns/does-not-exist", types.ErrUnknownContainer, "does not exist"},
		{file, types.ErrInvalidEnvironmentVariables, "is not a network namespace"},
		{"/proc/self/ns/mnt", types.ErrInvalidEnvironmentVariables, "is not a network namespace"},
		{"/proc/self/ns/net", types.ErrInvalidEnvironmentVariables, "the node's own"},
	} {
		rt := *p.rt
		rt.NetNS = tc.path
		_, err := n.libcni.AddNetworkList(n.ctx, list, &rt)
		wantCode(t, err, tc.code, tc.contains)
	}
	n.wantNothing()

	// DEL succeeds before any ADD, without a namespace, and for a deleted namespace.
	check(t, n.libcni.DelNetworkList(n.ctx, list, &libcni.RuntimeConf{ContainerID: "never", IfName: "eth0"}))
	n.mustAdd(list, p)
	rt := *p.rt
	rt.NetNS = ""
	check(t, n.libcni.DelNetworkList(n.ctx, list, &rt))
	n.wantNothing()
	n.mustAdd(list, p)
	rt.NetNS = "/var/run/netns/does-not-exist"
	check(t, n.libcni.DelNetworkList(n.ctx, list, &rt))
	n.wantNothing()
	// The interface exists already and must not be replaced.
	check(t, p.netns.Do(func(ns.NetNS) error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "other"})
	}))
	_, err := n.add(list, p)
	wantCode(t, err, types.ErrInvalidEnvironmentVariables, "CNI_IFNAME")
	n.wantNothing()
}

func TestAgentNotRunningOrNotReady(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.conf("1.1.0", "")
	p := n.pod("web")
	check(t, n.libcni.GetStatusNetworkList(n.ctx, list))
	n.set(func(s *cni.Settings) { s.NotReady = "no connection to OVSDB" })
	_, err := n.add(list, p)
	wantCode(t, err, types.ErrTryAgainLater, "no connection to OVSDB")
	wantCode(t, n.libcni.GetStatusNetworkList(n.ctx, list), 50, "no connection to OVSDB")
	n.wantNothing()

	check(t, n.stop())
	_, err = n.add(list, p)
	wantCode(t, err, types.ErrTryAgainLater, "does not answer")
	n.mustDel(list, p)
	wantCode(t, n.libcni.GetStatusNetworkList(n.ctx, list), 50, "does not answer")
	// The socket file of a killed agent.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.socket, Net: "unix"})
	check(t, err)
	l.SetUnlinkOnClose(false)
	check(t, l.Close())
	_, err = n.add(list, p)
	wantCode(t, err, types.ErrTryAgainLater, "does not answer")
	n.set(func(s *cni.Settings) { s.NotReady = "" })
	n.start()
	n.mustAdd(list, p)
	n.mustDel(list, p)
	n.wantNothing()
}

func TestPoolExhausted(t *testing.T) {
	// Six addresses, one of them the gateway's.
	n := newNode(t, "10.20.0.0/29", "fd20::/64")
	list := n.conf("1.1.0", "")
	var pods []*pod
	for range 5 {
		p := n.pod("web")
		n.mustAdd(list, p)
		pods = append(pods, p)
	}
	wantCode(t, n.libcni.GetStatusNetworkList(n.ctx, list), 50, "no address is left in pod CIDR 10.20.0.0/29")
	before := fmt.Sprint(n.attached())
	_, err := n.add(list, n.pod("web"))
	wantCode(t, err, cni.ErrPoolExhausted, "10.20.0.0/29")
	if after := fmt.Sprint(n.attached()); after != before {
		t.Errorf("attachments changed from %s to %s", before, after)
	}
	freed := n.attached()[2]
	for _, p := range pods {
		if p.rt.ContainerID == freed.ContainerID {
			n.mustDel(list, p)
		}
	}
	check(t, n.libcni.GetStatusNetworkList(n.ctx, list))
	if r := n.mustAdd(list, n.pod("web")); r.IPs[0].Address.IP.String() != freed.IPs[0].String() {
		t.Errorf("got %v instead of the only free address %v", r.IPs[0], freed.IPs[0])
	}
}

func TestMACOnRequest(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	for i, extra := range []string{`, "capabilities": {"mac": true}`, `, "args": {"cni": {"mac": "02:00:00:00:00:01"}}`,
		""} {
		p := n.pod("web")
		mac := fmt.Sprintf("02:00:00:00:00:0%d", i)
		switch i {
		case 0:
			p.rt.CapabilityArgs = map[string]any{"mac": mac}
		case 2:
			p.rt.Args = append(p.rt.Args, [2]string{"MAC", mac})
		}
		if r := n.mustAdd(n.conf("1.0.0", extra), p); r.Interfaces[1].Mac != mac {
			t.Errorf("asked for %s, got %s", mac, r.Interfaces[1].Mac)
		}
	}
}

// TestWithoutKubernetes: a container that is not a pod is rejected at once, without waiting for the ADD's timeout.
func TestWithoutKubernetes(t *testing.T) {
	n := newNode(t, "fd20::/64")
	p := n.pod("")
	p.rt.Args = nil
	_, err := n.add(n.conf("1.0.0", ""), p)
	wantCode(t, err, types.ErrInvalidEnvironmentVariables, "Kubernetes only")
	n.wantNothing()
}

func TestConcurrentAdds(t *testing.T) {
	n := newNode(t, "10.20.0.0/24", "fd20::/64")
	list := n.conf("1.0.0", "")
	pods := make([]*pod, 100)
	for i := range pods {
		pods[i] = n.pod("web")
	}
	each := func(what string, fn func(*pod) error) {
		var wg sync.WaitGroup
		for _, p := range pods {
			wg.Go(func() {
				if err := fn(p); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			})
		}
		wg.Wait()
	}
	each("ADD", func(p *pod) error { _, err := n.add(list, p); return err })
	ips, ports, names := map[netip.Addr]bool{}, map[uint32]bool{}, map[string]bool{}
	for _, a := range n.attached() {
		for _, ip := range a.IPs {
			if ips[ip] {
				t.Errorf("address %s was given twice", ip)
			}
			ips[ip] = true
		}
		ports[a.OFPort], names[a.HostIfName] = true, true
	}
	if len(ips) != 200 || len(ports) != 100 || len(names) != 100 {
		t.Errorf("%d addresses, %d ports, %d names", len(ips), len(ports), len(names))
	}
	each("CHECK", func(p *pod) error { return n.libcni.CheckNetworkList(n.ctx, list, p.rt) })
	each("DEL", func(p *pod) error { return n.libcni.DelNetworkList(n.ctx, list, p.rt) })
	n.wantNothing()
}

func TestOneKeyAtATime(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.conf("1.0.0", "")
	p := n.pod("web")
	release := n.flows.block()
	added := make(chan error, 1)
	go func() { _, err := n.add(list, p); added <- err }()
	<-n.flows.entered
	deleted := make(chan error, 1)
	go func() { deleted <- n.libcni.DelNetworkList(n.ctx, list, p.rt) }()
	// Another attachment is not delayed.
	free := n.pod("web")
	other := make(chan error, 1)
	go func() { _, err := n.add(list, free); other <- err }()
	<-n.flows.entered
	select {
	case err := <-deleted:
		t.Fatalf("DEL overtook the ADD of the same attachment: %v", err)
	default:
	}
	release()
	check(t, errors.Join(<-added, <-deleted, <-other))
	n.mustDel(list, free)
	n.wantNothing()
}

func TestFailureRollsBack(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.conf("1.0.0", "")
	p := n.pod("web")
	n.flows.fail(errors.New("the switch rejects flows"))
	_, err := n.add(list, p)
	wantCode(t, err, types.ErrTryAgainLater, "the switch rejects flows")
	n.wantNothing()
	n.flows.fail(nil)

	// When the rollback fails too, the error names it and the address stays reserved until DEL has succeeded.
	check(t, n.stop())
	broken := &brokenPorts{Client: n.db, err: errors.New("OVSDB is away")}
	n.startWith(broken)
	_, err = n.add(list, p)
	wantCode(t, err, types.ErrTryAgainLater, "the rollback failed")
	_, err = n.add(list, p)
	wantCode(t, err, cni.ErrAlreadyAttached, "DEL it first")
	wantCode(t, n.libcni.DelNetworkList(n.ctx, list, p.rt), types.ErrTryAgainLater, "OVSDB is away")
	broken.set(nil)
	n.mustDel(list, p)
	n.wantNothing()
	n.mustAdd(list, p)
}

// brokenPorts is the bridge while OVSDB cannot be written.
type brokenPorts struct {
	*ovsdb.Client
	mu  sync.Mutex
	err error
}

func (b *brokenPorts) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
}

func (b *brokenPorts) get() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

func (b *brokenPorts) AddPort(ctx context.Context, a model.Attachment) error {
	if err := b.get(); err != nil {
		return err
	}
	return b.Client.AddPort(ctx, a)
}

func (b *brokenPorts) RemovePort(ctx context.Context, name string) error {
	if err := b.get(); err != nil {
		return err
	}
	return b.Client.RemovePort(ctx, name)
}
