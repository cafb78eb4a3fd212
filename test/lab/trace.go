package lab

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/weft-cni/weft/internal/unixctl"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/test/lab/podns"
)

// traceSource is the source port of traced packets, which stands for any.
const traceSource = 40000

// journey is a packet to trace, from a pod to an address. Replies belong to an established connection.
type journey struct {
	from             *pod
	src, dst         netip.Addr
	proto            podns.Proto
	srcPort, dstPort uint16
	reply            bool
}

// trace follows the first packet of a probe that differs and, without an answer, what a reply would do. Whatever fails
// becomes part of the text: it is shown to a person, beside what it explains.
func (l *Lab) trace(ctx context.Context, from *pod, t Target, answered bool, pods []*pod) string {
	src, ok := from.source(t.Addr.Is4())
	if !ok {
		return "the pod has no address of that family"
	}
	there := journey{from: from, src: src, dst: t.Addr, proto: t.Proto, srcPort: traceSource, dstPort: t.Number}
	text := l.follows(ctx, there, pods)
	to := ownerOf(t.Addr, pods)
	if answered || to == nil || to == from || to.onHost() {
		return text
	}
	back := journey{from: to, src: t.Addr, dst: src, proto: t.Proto, srcPort: t.Number, dstPort: traceSource, reply: true}
	return text + "\n\nand a reply, if there is one:\n" + l.follows(ctx, back, pods)
}

// follows traces a packet through the switch of its node and, when it leaves through a tunnel, that of the other.
func (l *Lab) follows(ctx context.Context, j journey, pods []*pod) string {
	n := j.from.node
	port, mac := model.PortGateway, model.GatewayMAC
	if !j.from.onHost() {
		var err error
		if port, err = portOf(ctx, j.from); err != nil {
			return err.Error()
		}
		mac = j.from.mac
	}
	text, err := n.trace(ctx, fmt.Sprintf("in_port=%d,dl_src=%s,dl_dst=%s,%s", port, mac, model.RouterMAC, j), j.reply)
	if err != nil {
		return err.Error()
	}
	out := fmt.Sprintf("on %s:\n%s", n.name, text)
	to := ownerOf(j.dst, pods)
	if to == nil || to.node == n || to.onHost() {
		return out
	}
	source := "tun_src"
	if n.underlay[0].Addr().Is6() {
		source = "tun_ipv6_src"
	}
	text, err = to.node.trace(ctx, fmt.Sprintf("in_port=%d,%s=%s,dl_src=%s,dl_dst=%s,%s", l.opt.Tunnel.InSwitch().Port(), source,
		n.underlay[0].Addr(), model.RouterMAC, model.RouterMAC, j), j.reply)
	if err != nil {
		return out + "\n" + err.Error()
	}
	return fmt.Sprintf("%s\nif it arrives, on %s:\n%s", out, to.node.name, text)
}

func ownerOf(addr netip.Addr, pods []*pod) *pod {
	for _, p := range pods {
		for _, ip := range p.ips {
			if ip == addr {
				return p
			}
		}
	}
	return nil
}

// portOf asks the node's agent which port a pod has.
func portOf(ctx context.Context, p *pod) (uint32, error) {
	r, err := p.node.report(ctx)
	if err != nil {
		return 0, err
	}
	for _, one := range r.Pods {
		if one.Pod == p.key && one.OFPort != 0 {
			return one.OFPort, nil
		}
	}
	return 0, fmt.Errorf("the agent of node %s does not know the port of pod %s", p.node.name, p.key)
}

// String is the packet in the words of ovs-fields(7), above Ethernet.
func (j journey) String() string {
	protocol := strings.ToLower(string(j.proto))
	if j.dst.Is6() {
		return fmt.Sprintf("%[1]s6,ipv6_src=%[2]s,ipv6_dst=%[3]s,nw_ttl=64,%[1]s_src=%[4]d,%[1]s_dst=%[5]d", protocol, j.src,
			j.dst, j.srcPort, j.dstPort)
	}
	return fmt.Sprintf("%[1]s,nw_src=%[2]s,nw_dst=%[3]s,nw_ttl=64,%[1]s_src=%[4]d,%[1]s_dst=%[5]d", protocol, j.src, j.dst,
		j.srcPort, j.dstPort)
}

// trace calls ofproto/trace of the node's ovs-vswitchd and names the tables.
func (n *node) trace(ctx context.Context, flow string, established bool) (string, error) {
	params := []string{model.BridgeName, flow}
	if established {
		// A reply of a connection that was let through.
		params = []string{model.BridgeName, fmt.Sprintf("ct_mark=%d,%s", flows.MarkAllowed, flow), "--ct-next", "trk,est,rpl"}
	}
	socket, err := unixctl.Socket(n.path(ovsRunDir), "ovs-vswitchd")
	if err != nil {
		return "", fmt.Errorf("trace on node %s: %w", n.name, err)
	}
	text, err := unixctl.Call(ctx, socket, "ofproto/trace", params...)
	if err != nil {
		return "", fmt.Errorf("trace on node %s of %s: %w", n.name, flow, err)
	}
	return nameTables(strings.TrimSpace(text)), nil
}

var (
	bridgeLine = regexp.MustCompile(`^bridge\("(.*)"\)`)
	tableLine  = regexp.MustCompile(`^( *)(\d+)\. `)
	gotoTable  = regexp.MustCompile(`\bgoto_table:(\d+)`)
)

// nameTables writes the tables' names beside their numbers. The underlay's bridge has no pipeline of ours.
func nameTables(text string) string {
	var out strings.Builder
	ours := false
	for line := range strings.Lines(text) {
		if m := bridgeLine.FindStringSubmatch(line); m != nil {
			ours = m[1] == model.BridgeName
		}
		if ours {
			line = tableLine.ReplaceAllStringFunc(line, func(s string) string {
				m := tableLine.FindStringSubmatch(s)
				return m[1] + m[2] + " " + tableName(m[2]) + ": "
			})
			line = gotoTable.ReplaceAllStringFunc(line, func(s string) string {
				return "goto_table:" + tableName(gotoTable.FindStringSubmatch(s)[1])
			})
		}
		out.WriteString(line)
	}
	return out.String()
}

func tableName(number string) string {
	id, err := strconv.ParseUint(number, 10, 8)
	if err != nil {
		return number
	}
	return flows.TableName(openflow.TableID(id))
}
