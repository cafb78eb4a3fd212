package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// traceSource is the source port of traced packets, which stands for any.
const traceSource = 40000

// trace follows the first packet of a probe through the switch of its node and, when it leaves through a tunnel, that of
// the other. Whatever fails becomes part of the text: it is shown to a person, beside what it explains.
func (l *Lab) trace(ctx context.Context, from *pod, t Target, pods []*pod) string {
	src, ok := from.ip(t.Addr.Is4())
	if !ok {
		return "the pod has no address of that family"
	}
	port, err := portOf(ctx, from)
	if err != nil {
		return err.Error()
	}
	text, err := from.node.trace(fmt.Sprintf("in_port=%d,dl_src=%s,dl_dst=%s,%s", port.number, port.mac, model.RouterMAC, packet(src, t)))
	if err != nil {
		return err.Error()
	}
	out := fmt.Sprintf("on %s:\n%s", from.node.name, text)
	to := ownerOf(t.Addr, pods)
	if to == nil || to.node == from.node || !strings.Contains(text, "tunnel") {
		return out
	}
	source, tunnel := "tun_src", l.opt.Tunnel.Port()
	if from.node.underlay[0].Addr().Is6() {
		source = "tun_ipv6_src"
	}
	text, err = to.node.trace(fmt.Sprintf("in_port=%d,%s=%s,dl_src=%s,dl_dst=%s,%s", tunnel, source, from.node.underlay[0].Addr(), model.RouterMAC, model.RouterMAC, packet(src, t)))
	if err != nil {
		return out + "\n" + err.Error()
	}
	return fmt.Sprintf("%s\non %s:\n%s", out, to.node.name, text)
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

type switchPort struct {
	number uint32
	mac    model.MAC
}

// portOf asks the node's agent which port a pod has.
func portOf(ctx context.Context, p *pod) (switchPort, error) {
	r, err := p.node.report(ctx)
	if err != nil {
		return switchPort{}, err
	}
	for _, one := range r.Pods {
		if one.Pod == p.key && one.OFPort != 0 {
			return switchPort{one.OFPort, p.mac}, nil
		}
	}
	return switchPort{}, fmt.Errorf("the agent of node %s does not know the port of pod %s", p.node.name, p.key)
}

// packet is the packet in the words of ovs-fields(7), above Ethernet.
func packet(src netip.Addr, t Target) string {
	protocol := strings.ToLower(string(t.Proto))
	if t.Addr.Is6() {
		return fmt.Sprintf("%s6,ipv6_src=%s,ipv6_dst=%s,nw_ttl=64,tp_src=%d,tp_dst=%d", protocol, src, t.Addr, traceSource, t.Number)
	}
	return fmt.Sprintf("%s,nw_src=%s,nw_dst=%s,nw_ttl=64,tp_src=%d,tp_dst=%d", protocol, src, t.Addr, traceSource, t.Number)
}

// trace calls ofproto/trace of the node's ovs-vswitchd, which speaks JSON-RPC, and names the tables.
func (n *node) trace(flow string) (string, error) {
	const timeout = 10 * time.Second
	conn, err := net.DialTimeout("unix", n.path(unixctl), timeout)
	if err != nil {
		return "", fmt.Errorf("trace on node %s: %w", n.name, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", fmt.Errorf("trace on node %s: %w", n.name, err)
	}
	if err := json.NewEncoder(conn).Encode(map[string]any{"id": 1, "method": "ofproto/trace", "params": []string{model.BridgeName, flow}}); err != nil {
		return "", fmt.Errorf("trace on node %s: %w", n.name, err)
	}
	var reply struct {
		Result string `json:"result"`
		Error  any    `json:"error"`
	}
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		return "", fmt.Errorf("trace on node %s: %w", n.name, err)
	}
	if reply.Error != nil {
		return "", fmt.Errorf("trace on node %s of %s: %v", n.name, flow, reply.Error)
	}
	return nameTables(strings.TrimSpace(reply.Result)), nil
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
