//go:build integration

package datapath

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// chaosManifests are a server, a client, a stranger and a caged pod on each node. Ingress policies keep strangers from
// the servers, an egress policy keeps the caged pods from everything.
func chaosManifests(ns string) string {
	text := namespaceManifest(ns, "a: b")
	for _, node := range []string{"node1", "node2"} {
		for _, role := range []string{"server", "client", "stranger", "caged"} {
			text += walledPod(ns, role+"-"+node, node, "role: "+role)
		}
	}
	text += policyManifest(ns, "servers", "podSelector: {matchLabels: {role: server}}, policyTypes: [Ingress], ingress: "+
		"[{from: [{podSelector: {matchLabels: {role: client}}}, {podSelector: {matchLabels: {role: server}}}, "+
		// The host outside, and node1 as another node's pods see it.
		"{ipBlock: {cidr: 172.31.0.0/24}}, {ipBlock: {cidr: \"fd57:6566:7461::/64\"}}, "+
		"{ipBlock: {cidr: 10.244.0.1/32}}, {ipBlock: {cidr: \"fd10:244::1/128\"}}]}]") +
		policyManifest(ns, "caged", "podSelector: {matchLabels: {role: caged}}, policyTypes: [Egress]")
	return text + fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: servers}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {role: server}
  ports:
  - {name: udp, port: %d, protocol: UDP, targetPort: %d, nodePort: %d}
  - {name: tcp, port: %[2]d, protocol: TCP, targetPort: %[3]d, nodePort: %[4]d}
`, ns, chaosServicePort, chaosPort, chaosNodePort)
}

// chaosLab are the places that traffic comes from and goes to.
type chaosLab struct {
	*chaos
	pods    map[string]*client
	outside *client
	vips    []netip.Addr
	// routes is how many have been started.
	routes int
}

// upChaos starts the lab and its traffic: between pods of one node and of two, through Services, between nodes and
// pods, from the host outside and to it; and what the policies forbid.
func upChaos(t *testing.T, name string) *chaos {
	const ns = "chaos"
	c := &chaos{walled: upWalled(t, name, map[string]string{"a.yaml": chaosManifests(ns)}), t: t,
		hosts: map[string]*client{}}
	l := &chaosLab{chaos: c, pods: map[string]*client{}}
	l.outside = openClient(t, c.Status(), "", "", "outside")
	for _, node := range []string{"node1", "node2"} {
		if testenv.Patience(time.Second) > time.Second {
			// Where revalidation takes longer than half of this, ovs-vswitchd deletes cached flows of fewer than five packets a
			// second, and each packet of theirs is an upcall (ovs-vswitchd.conf.db(5), min-revalidate-pps).
			c.Run("node/"+node, "ovs-vsctl", "set", "Open_vSwitch", ".", "other_config:max-revalidator=20000")
		}
		l.hosts[node] = c.host(t, node)
		for _, role := range []string{"server", "client", "stranger", "caged"} {
			l.pods[role+"-"+node] = c.pod(t, ns+"/"+role+"-"+node)
		}
	}
	for _, at := range []*client{l.pods["server-node1"], l.pods["server-node2"], l.pods["client-node1"],
		l.pods["client-node2"], l.outside} {
		c.servers = append(c.servers, serveEcho(t, at, chaosPort), c.serveTCP(at, chaosPort).echoServer)
	}
	l.vips = c.serviceIPs(t, ns, "servers")
	l.tap("server-node1", "stranger", "caged")
	l.tap("server-node2", "stranger", "caged")
	l.tap("client-node2", "caged")
	for _, v4 := range []bool{true, false} {
		l.allow(v4)
		l.forbid(v4)
	}
	for _, start := range c.later {
		start()
	}
	c.machine = watchMachine(t, c.files)
	c.settle("the start")
	time.Sleep(chaosPatience())
	c.drops = c.queueDrops()
	return c
}

// allow starts what policies allow, in one family.
func (l *chaosLab) allow(v4 bool) {
	outside, node1 := l.outside, l.hosts["node1"]
	client1, client2 := l.pods["client-node1"], l.pods["client-node2"]
	direct := func(to *client) netip.AddrPort { return netip.AddrPortFrom(to.addr(v4), chaosPort) }
	service := netip.AddrPortFrom(of(l.vips, v4), chaosServicePort)
	nodePort := netip.AddrPortFrom(of(node1.ips, v4), chaosNodePort)
	for _, r := range []struct {
		name string
		from *client
		to   netip.AddrPort
		// fragments and connects say what goes there besides datagrams and a stream.
		fragments, connects bool
	}{
		{"client-node1 to server-node1", client1, direct(l.pods["server-node1"]), true, false},
		{"client-node1 to server-node2", client1, direct(l.pods["server-node2"]), true, true},
		{"node1 to server-node1", node1, direct(l.pods["server-node1"]), false, false},
		{"node1 to server-node2", node1, direct(l.pods["server-node2"]), false, false},
		{"server-node2 to client-node1", l.pods["server-node2"], direct(client1), true, false},
		{"client-node1 to the Service", client1, service, true, true},
		{"client-node2 to the Service", client2, service, false, true},
		{"node1 to the Service", node1, service, false, true},
		{"client-node1 to the world", client1, direct(outside), false, false},
		{"the world to the node port at node1", outside, nodePort, v4, true},
	} {
		name := r.name + " over " + familyName(v4)
		l.watch = append(l.watch, startPinger(l.t, r.from, r.to, allowed, chaosSizes, chaosEvery, l.pause(), name))
		if r.fragments {
			l.watch = append(l.watch, startPinger(l.t, r.from, r.to, allowed, chaosFragmentSizes, chaosFragmentsEvery, l.pause(),
				name+", in fragments"))
		}
		if r.connects {
			l.watch = append(l.watch, startDialer(l.t, r.from, r.to, allowed, name+", new connections"))
		}
		l.startStream(&chaosStream{
			name: name + ", a stream", from: r.from, to: r.to,
			translated:  r.to == service || r.to == nodePort,
			masqueraded: r.from == node1 || r.to == nodePort || r.to == direct(outside),
		})
	}
}

// forbid starts what policies forbid, in one family: ingress policies for what strangers send, egress for the caged.
func (l *chaosLab) forbid(v4 bool) {
	add := func(from string, to netip.AddrPort) {
		name := from + " to " + to.String()
		p := startPinger(l.t, l.pods[from], to, forbidden, chaosForbiddenSizes, 2*chaosEvery, l.pause(), name)
		d := startDialer(l.t, l.pods[from], to, forbidden, name+", new connections")
		l.forbidden = append(l.forbidden, &p.series, &d.series)
	}
	for _, node := range []string{"node1", "node2"} {
		add("stranger-"+node, netip.AddrPortFrom(l.pods["server-node1"].addr(v4), chaosPort))
		add("stranger-"+node, netip.AddrPortFrom(of(l.vips, v4), chaosServicePort))
		add("caged-"+node, netip.AddrPortFrom(l.pods["client-node2"].addr(v4), chaosPort))
	}
}

// pause is the time before a route begins, so that not all send at the same moment.
func (l *chaosLab) pause() time.Duration {
	l.routes++
	return time.Duration(l.routes) * 17 * time.Millisecond
}

// forbiddenTap hears packets in a pod that must not be there.
type forbiddenTap struct {
	at string
	*tap
}

// tap hears every packet that arrives in a pod from pods of these roles.
func (l *chaosLab) tap(at string, roles ...string) {
	var sources []netip.Addr
	for _, role := range roles {
		for _, node := range []string{"node1", "node2"} {
			sources = append(sources, l.pods[role+"-"+node].ips...)
		}
	}
	l.taps = append(l.taps, forbiddenTap{at, l.pods[at].listen(l.t, "eth0", func(h heard) bool {
		return !h.leaving && (h.fragment || h.proto != "") && slices.Contains(sources, h.src.Addr())
	})})
}

// violations are what policies forbid and was seen all the same, since the beginning.
func (c *chaos) violations() (list []string) {
	for _, s := range c.servers {
		list = append(list, s.violations()...)
	}
	for _, f := range c.forbidden {
		if n := f.succeeded(); n > 0 {
			list = append(list, fmt.Sprintf("%s: %d were answered", f.name, n))
		}
	}
	for _, tap := range c.taps {
		if frames := tap.heard(func(heard) bool { return true }); len(frames) > 0 {
			list = append(list, fmt.Sprintf("%s heard %d packets: %s", tap.at, len(frames),
				describe(frames[:min(5, len(frames))])))
		}
	}
	return list
}

// belongings are what the nodes have that could be left over. Each line begins with its node. The devices that
// ovs-vswitchd adds to the kernel for its tunnels have another MAC address each time, and so another link-local one.
func (c *chaos) belongings() string {
	const list = `ovs-vsctl list-ports weft | sed 's/^/port /'; ip -br link | awk '{print "link", $1}'
ovs-ofctl -O OpenFlow15 dump-groups weft | grep -c group_id | sed 's/^/groups: /'
ovs-ofctl -O OpenFlow15 --no-stats dump-flows weft | grep -o ' table=[0-9]*' | sort | uniq -c | awk '{print "flows of", $2 ":", $1}'
nft list tables; nft -s list ruleset | wc -l | sed 's/^/lines of nftables: /'
for f in -4 -6; do ip $f rule | sed "s/^/rule $f /"; ip $f route show table all | grep -v 'proto ra' | sed "s/ expires [0-9]*sec//; s/ fe80::.* dev \([a-z]*_sys_\)/ fe80:: dev \1/; s/^/route $f /"; done
ls /run/weft/attachments | sed 's/^/attachment /'; ovs-vsctl --bare --columns=_uuid list Port | wc -l | sed 's/^/rows of Port: /'`
	var text strings.Builder
	for _, node := range []string{"node1", "node2"} {
		for line := range strings.Lines(c.Run("node/"+node, "sh", "-c", list)) {
			fmt.Fprintf(&text, "%s: %s\n", node, strings.TrimSpace(line))
		}
	}
	return text.String()
}

// difference are the lines that one text has more often than the other, in any order.
func difference(before, after string) string {
	count := map[string]int{}
	for line := range strings.Lines(before) {
		count[line]--
	}
	for line := range strings.Lines(after) {
		count[line]++
	}
	var list []string
	for line, n := range count {
		if n != 0 {
			list = append(list, fmt.Sprintf("%+d %s", n, line))
		}
	}
	slices.Sort(list)
	return strings.Join(list, "")
}
