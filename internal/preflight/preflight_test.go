package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// host is a node on which all is well, in a directory.
func host(t *testing.T, version string) Host {
	t.Helper()
	root := t.TempDir()
	for file, text := range map[string]string{
		"proc/sys/kernel/osrelease":              "6.1.0-test\n",
		"proc/modules":                           "nf_tables 372736 0 - Live 0x0\n",
		"lib/modules/6.1.0-test/modules.dep":     "kernel/net/openvswitch/openvswitch.ko.xz: kernel/a.ko\nkernel/net/openvswitch/vport-geneve.ko:\n",
		"lib/modules/6.1.0-test/modules.builtin": "kernel/net/openvswitch/vport-vxlan.ko\nkernel/net/openvswitch/vport-gre.ko\n",
		"etc/cni/net.d/10-weft.conflist":         "",
		"etc/cni/net.d/README":                   "",
	} {
		path := filepath.Join(root, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if version != "" {
		switches(t, filepath.Join(root, "run/openvswitch"), version)
	}
	return Host{Root: root, Datapath: "system", Ports: func(string, string) error { return nil }, NFT: rulesOf("", "")}
}

// rulesOf are nft's answers: a list of chains beside one that is of no interest, and a table.
func rulesOf(chains, table string) func(context.Context, ...string) ([]byte, error) {
	return func(_ context.Context, args ...string) ([]byte, error) {
		if args[0] == "list" {
			return []byte(table), nil
		}
		return []byte(`{"nftables": [{"metainfo": {"version": "1.0.6", "json_schema_version": 1}}, {"chain": {"family": "ip",
			"table": "filter", "name": "INPUT", "handle": 1, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}}` + chains + `]}`), nil
	}
}

const forwardChain = `, {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 2, "type": "filter", "hook": "forward",
	"prio": 0, "policy": "drop"}}`

// write writes files below a host's root.
func (h *Host) write(files map[string]string) {
	for file, text := range files {
		_ = os.MkdirAll(filepath.Dir(h.path(file)), 0o755)
		_ = os.WriteFile(h.path(file), []byte(text), 0o600)
	}
}

// advertised are the files of a node whose eth0 has what router advertisements gave it: the default route, or an
// address.
func advertised(route, address string) map[string]string {
	return map[string]string{
		"proc/net/ipv6_route": "00000000000000000000000000000000 00 00000000000000000000000000000000 00 " +
			"fe800000000000000000000000000001 00000400 00000001 00000000 " + route + "     eth0\n" +
			"20010db8000000000000000000000000 40 00000000000000000000000000000000 00 " +
			"00000000000000000000000000000000 00000100 00000001 00000000 00040001     eth1\n",
		"proc/net/if_inet6": "00000000000000000000000000000001 01 80 10 80       lo\n" +
			"20010db8000000000000000000000001 02 40 00 " + address + "     eth0\n",
		"proc/sys/net/ipv6/conf/eth0/forwarding": "1\n", "proc/sys/net/ipv6/conf/eth0/accept_ra": "1\n",
		"proc/sys/net/ipv6/conf/lo/forwarding": "1\n", "proc/sys/net/ipv6/conf/lo/accept_ra": "1\n",
		"proc/sys/net/ipv6/conf/eth1/forwarding": "1\n", "proc/sys/net/ipv6/conf/eth1/accept_ra": "1\n",
	}
}

// switches has a database, and an ovs-vswitchd that answers with a version unless that is "none".
func switches(t *testing.T, dir, version string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	listen := func(name string) net.Listener {
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		return listener
	}
	listen("db.sock")
	if version == "none" {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, "ovs-vswitchd.pid"), []byte("77\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	listener := listen("ovs-vswitchd.77.ctl")
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // the test is over
			}
			_ = json.NewDecoder(conn).Decode(new(any))
			_, _ = fmt.Fprintf(conn, `{"id":1,"error":null,"result":"ovs-vswitchd (Open vSwitch) %s\n"}`, version)
			_ = conn.Close()
		}
	}()
}

// TestNode: each thing that is wrong with a node is a line that says what to do, and nothing else is.
func TestNode(t *testing.T) {
	for name, tc := range map[string]struct {
		version    string
		change     func(*Host)
		check, saw string
		do         string
	}{
		"well": {version: "3.1.0"},
		"module": {version: "3.10.2", change: func(h *Host) {
			_ = os.Remove(h.path("lib/modules/6.1.0-test/modules.builtin"))
		}, check: "kernel modules", saw: "kernel 6.1.0-test has no vport-vxlan, vport-gre", do: "or set datapath: netdev"},
		"no WireGuard": {version: "3.1.0", change: func(h *Host) {
			h.Encryption = "wireguard"
		}, check: "WireGuard", saw: "kernel 6.1.0-test has no wireguard", do: "or set encryption: none"},
		"no IPIP": {version: "3.1.0", change: func(h *Host) {
			h.TunnelType = "ipip"
		}, check: "IPIP", saw: "kernel 6.1.0-test has no ipip, sit, ip6_tunnel", do: "or set tunnelType: geneve"},
		"userspace datapath": {version: "3.1.0", change: func(h *Host) {
			h.Datapath = "netdev"
			_ = os.RemoveAll(h.path("lib"))
		}},
		"without Open vSwitch": {check: "Open vSwitch", saw: "/run/openvswitch/db.sock not found", do: "install and start Open vSwitch 3.1"},
		"old Open vSwitch":     {version: "2.17.9", check: "Open vSwitch", saw: "2.17.9", do: "upgrade it to 3.1 or newer"},
		"no ovs-vswitchd":      {version: "none", check: "Open vSwitch", saw: "ovs-vswitchd does not run", do: "start ovsdb-server and ovs-vswitchd"},
		"other plugin": {version: "3.1.0", change: func(h *Host) {
			_ = os.WriteFile(h.path("etc/cni/net.d/05-cilium.conflist"), nil, 0o600)
		}, check: "other CNI plugins", saw: "05-cilium.conflist", do: "remove the other plugin"},
		"forwarded packets": {version: "3.1.0", change: func(h *Host) { h.NFT = rulesOf(forwardChain, "table ip filter {}") },
			check: "forwarded packets", saw: "chain ip filter FORWARD drops them by policy", do: "iptables -I FORWARD -i weft0 -j ACCEPT"},
		"forwarded packets accepted": {version: "3.1.0", change: func(h *Host) {
			h.NFT = rulesOf(forwardChain, `table ip filter { chain FORWARD { iifname "weft0" accept } }`)
		}},
		"kube-proxy": {version: "3.1.0", change: func(h *Host) {
			h.NFT = rulesOf(`, {"chain": {"family": "ip", "table": "nat", "name": "KUBE-SERVICES", "handle": 1}}`, "")
		}, check: "kube-proxy's rules", saw: "chain KUBE-SERVICES of table ip nat", do: "kube-proxy --cleanup"},
		"kube-proxy's nftables": {version: "3.1.0", change: func(h *Host) {
			h.NFT = rulesOf(`, {"chain": {"family": "ip6", "table": "kube-proxy", "name": "services", "handle": 1}}`, "")
		}, check: "kube-proxy's rules", saw: "chain services of table ip6 kube-proxy", do: "kube-proxy --cleanup"},
		"without nft": {version: "3.1.0", change: func(h *Host) {
			h.NFT = func(context.Context, ...string) ([]byte, error) { return nil, exec.ErrNotFound }
		}},
		"route of an advertisement": {version: "3.1.0", change: func(h *Host) { h.write(advertised("00450003", "80")) },
			check: "IPv6 router advertisements", saw: "ignores those on eth0 (accept_ra is 1)", do: "net.ipv6.conf.eth0.accept_ra=2"},
		"address of an advertisement": {version: "3.1.0", change: func(h *Host) { h.write(advertised("00000003", "00")) },
			check: "IPv6 router advertisements", saw: "on eth0 (", do: "net.ipv6.conf.eth0.accept_ra=2"},
		"neither of an advertisement": {version: "3.1.0", change: func(h *Host) { h.write(advertised("00000003", "80")) }},
		"advertisements are accepted": {version: "3.1.0", change: func(h *Host) {
			h.write(advertised("00450003", "00"))
			h.write(map[string]string{"proc/sys/net/ipv6/conf/eth0/accept_ra": "2\n"})
		}},
		"the node does not forward yet": {version: "3.1.0", change: func(h *Host) {
			h.write(advertised("00450003", "00"))
			h.write(map[string]string{"proc/sys/net/ipv6/conf/eth0/forwarding": "0\n"})
		}},
		"port": {version: "3.1.0", change: func(h *Host) {
			h.Ports = func(network, address string) error {
				if network == "udp" && address == ":6081" {
					return errors.New("address already in use")
				}
				return nil
			}
		}, check: "port of Geneve", saw: "udp :6081: address already in use", do: "stop the program that has it"},
	} {
		h := host(t, tc.version)
		if tc.change != nil {
			tc.change(&h)
		}
		wantFindings(t, name, Node(t.Context(), h), tc.check, tc.saw, tc.do)
	}
}

// wantFindings wants the one problem of a check; none when that is empty.
func wantFindings(t *testing.T, name string, list []Finding, check, saw, do string) {
	t.Helper()
	for _, f := range list {
		problem := f.Check == check
		if problem != (f.Do != "") || problem && (!strings.Contains(f.Saw, saw) || !strings.Contains(f.Do, do)) || f.Saw == "" {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// fake is a cluster; its answers are by the begin of kubectl's arguments.
type fake struct {
	answers map[string]string
	deleted int
}

func (f *fake) RunWith(ctx context.Context, input []byte, args ...string) ([]byte, error) {
	line := strings.Join(args, " ")
	for begin, answer := range f.answers {
		if strings.HasPrefix(line, begin) {
			return []byte(answer), nil
		}
	}
	switch args[0] {
	case "create":
		if !json.Valid(input) {
			return nil, errors.New("invalid objects")
		}
		return nil, nil
	case "delete":
		f.deleted++
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("the test does not expect kubectl %s", line)
}

// well are the answers of a cluster on which all is well.
func well() map[string]string {
	return map[string]string{
		"version":                           `{"serverVersion":{"gitVersion":"v1.34.1"}}`,
		"get nodes":                         `{"items":[{"metadata":{"name":"n1"},"spec":{"podCIDRs":["10.244.0.0/24"]},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}]}`,
		"get daemonsets --all-namespaces":   `{"items":[{"metadata":{"name":"logs","namespace":"ops"}}]}`,
		"get endpointslices":                `{"items":[{"ports":[{"port":6443}],"endpoints":[{"addresses":["2001:db8::1"]}]}]}`,
		"get pods --namespace=weft-check-x": `{"items":[{"metadata":{"name":"check-1"},"status":{"phase":"Succeeded"}}]}`,
		"logs --namespace=weft-check-x":     `[{"check":"Open vSwitch","saw":"version 3.1.0"}]`,
	}
}

// TestCluster: each thing that is wrong with a cluster is a line that says what to do, and nothing else is.
func TestCluster(t *testing.T) {
	for name, tc := range map[string]struct{ ask, answer, check, saw, do string }{
		"well":         {},
		"old":          {"version", `{"serverVersion":{"gitVersion":"v1.29.9"}}`, "Kubernetes", "v1.29.9", "upgrade Kubernetes"},
		"no pod CIDRs": {"get nodes", `{"items":[{"metadata":{"name":"n1"}}]}`, "pod CIDRs", "the Node has none", "--allocate-node-cidrs"},
		"no InternalIP": {"get nodes", `{"items":[{"metadata":{"name":"n1"},"spec":{"podCIDRs":["10.244.0.0/24"]}}]}`, "pod CIDRs",
			"the Node has no InternalIP", "--node-ip"},
		"kube-proxy": {"get daemonsets --all-namespaces", `{"items":[{"metadata":{"name":"kube-proxy","namespace":"kube-system"}}]}`,
			"kube-proxy", "DaemonSet kube-system/kube-proxy", "kube-proxy --cleanup"},
		"other plugin": {"get daemonsets --all-namespaces", `{"items":[{"metadata":{"name":"kube-flannel-ds","namespace":"kube-flannel"}}]}`,
			"other CNI plugins", "kube-flannel/kube-flannel-ds", "remove the other plugin"},
		"no API server": {"get endpointslices", `{"items":[]}`, "API server", "has no address", "set apiServer"},
	} {
		answers := well()
		if tc.ask != "" {
			answers[tc.ask] = tc.answer
		}
		list, names, err := Cluster(t.Context(), &fake{answers: answers})
		if err != nil || len(names) != 1 || names[0] != "n1" || len(list) != 5 {
			t.Errorf("%s: %q, %v, %+v", name, names, err, list)
		}
		wantFindings(t, name, list, tc.check, tc.saw, tc.do)
	}
}

// TestNodes: what the pods say has their nodes' names, a pod that does not end is a problem, and nothing stays.
func TestNodes(t *testing.T) {
	o := Options{Namespace: "weft-check-x", Image: "weft.io/weft:v1", Datapath: "system", Nodes: []string{"n1"}, Within: time.Minute}
	for phase, check := range map[string]string{"Succeeded": "", "Failed": "", "Pending": "pod on the node"} {
		synctest.Test(t, func(t *testing.T) {
			f := &fake{answers: well()}
			f.answers["get pods"] = strings.ReplaceAll(f.answers["get pods --namespace=weft-check-x"], "Succeeded", phase)
			delete(f.answers, "get pods --namespace=weft-check-x")
			list, err := Nodes(t.Context(), f, o)
			if err != nil || len(list) != 1 || list[0].Node != "n1" || f.deleted != 1 {
				t.Errorf("%s: %v, %+v, deleted %d", phase, err, list, f.deleted)
			}
			wantFindings(t, phase, list, check, "it is Pending after 1m0s", "weft.io/weft:v1")
		})
	}
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	f := &fake{answers: well()}
	delete(f.answers, "get pods --namespace=weft-check-x")
	if _, err := Nodes(ctx, f, o); err == nil || f.deleted != 1 {
		t.Errorf("interrupted: %v, deleted %d", err, f.deleted)
	}
}
