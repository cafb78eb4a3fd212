package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/bench/result"
	"github.com/weft-cni/weft/test/datapath/burst"
	"github.com/weft-cni/weft/test/lab/podns"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// The ports of every pod.
const (
	echoPort = 7100 // a byte back for each byte, TCP and UDP
	sinkPort = 7101 // counts what arrives, TCP and UDP
)

// podMTU is what tunnels over an underlay of 1,500 bytes leave, as Weft sets it.
const podMTU = 1450

// pod is an end of traffic, with its servers.
type pod struct {
	ns    podns.Namespace
	addrs []netip.Addr // one of each family
	sink  *sink
}

// path is a way between two pods. Address is what the sender sends to: the receiver's own, or a Service's.
type path struct {
	name     string
	from, to *pod
	address  []netip.Addr // one of each family
	// back says that the receiver reaches the sender by its address, too.
	back bool
}

// switchNode is a node of a network that has an Open vSwitch.
type switchNode struct {
	node   sandbox.Node
	bridge string
}

// network is a system with two nodes that stands.
type network struct {
	system   string
	paths    []path
	switches []switchNode
	// down takes it down. It can be called in any state, once.
	down func(ctx context.Context) error
}

// of is the address of a family.
func of(addrs []netip.Addr, family string) netip.Addr {
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == (family == ipv4) })
	if i < 0 {
		return netip.Addr{}
	}
	return addrs[i]
}

const (
	ipv4 = "ipv4"
	ipv6 = "ipv6"
)

// newPod starts the servers of a pod that is connected.
func newPod(ns podns.Namespace, addrs []netip.Addr) (p *pod, closers []io.Closer, err error) {
	p = &pod{ns: ns, addrs: addrs}
	echo, err := burst.Serve(ns, echoPort)
	if err != nil {
		return nil, nil, err
	}
	if p.sink, err = serveSink(ns, sinkPort); err != nil {
		return nil, nil, errors.Join(err, echo.Close())
	}
	return p, []io.Closer{echo, p.sink}, nil
}

// reach sends a byte there and back, over TCP and UDP, both ways, in both families, and says what was reached. It waits
// until the network carries traffic.
func (n *network) reach(ctx context.Context) ([]result.Reach, error) {
	var reached []result.Reach
	for _, p := range n.paths {
		for _, family := range []string{ipv4, ipv6} {
			ways := []way{{p.from, of(p.address, family)}}
			if p.back {
				ways = append(ways, way{p.to, of(p.from.addrs, family)})
			}
			for _, w := range ways {
				for _, proto := range []string{"tcp", "udp"} {
					err := testenv.Poll(ctx, 20*time.Second, func(context.Context) error { return w.echo(proto) })
					if err != nil {
						return nil, fmt.Errorf("%s, path %s, %s to %s: %w", n.system, p.name, proto, w.to, err)
					}
				}
			}
			reached = append(reached, result.Reach{System: n.system, Path: p.name, Family: family})
		}
	}
	return reached, nil
}

// way is one direction of a path.
type way struct {
	from *pod
	to   netip.Addr
}

// echo sends a byte and wants it back.
func (w way) echo(proto string) error {
	conn, err := w.from.dial(proto, netip.AddrPortFrom(w.to, echoPort))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(testenv.Patience(time.Second))); err != nil {
		return err
	}
	sent, got := []byte{byte(time.Now().Nanosecond())}, make([]byte, 1)
	if _, err := conn.Write(sent); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if got[0] != sent[0] {
		return fmt.Errorf("sent %d, got %d back", sent, got)
	}
	return nil
}

// dial connects from the pod.
func (p *pod) dial(proto string, to netip.AddrPort) (conn net.Conn, err error) {
	dialer := net.Dialer{Timeout: testenv.Patience(2 * time.Second)}
	err = p.ns.Do(func() error {
		conn, err = dialer.Dial(proto, to.String())
		return err
	})
	return conn, err
}

// run runs a command on the node.
func (s switchNode) run(ctx context.Context, args ...string) (string, error) {
	return s.node.Run(ctx, args...)
}

// processorTime is what the network's ovs-vswitchd have used.
func (n *network) processorTime() (sum time.Duration, err error) {
	for _, s := range n.switches {
		used, err := s.processorTime()
		if err != nil {
			return 0, fmt.Errorf("%s: read the processor time of ovs-vswitchd: %w", n.system, err)
		}
		sum += used
	}
	return sum, nil
}

func (s switchNode) processorTime() (time.Duration, error) {
	// Of /proc/PID/stat in USER_HZ (proc(5)).
	const userTime, systemTime, tick = 11, 12, 10 * time.Millisecond
	pid, err := os.ReadFile(filepath.Join(fmt.Sprintf("/proc/%d/root", s.node.Holder.PID), ovsRunDir, "ovs-vswitchd.pid"))
	if err != nil {
		return 0, err
	}
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, err1 := strconv.Atoi(fields[userTime])
	system, err2 := strconv.Atoi(fields[systemTime])
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}

// closeAll closes in reverse order.
func closeAll(closers []io.Closer) error {
	var errs []error
	for _, c := range slices.Backward(closers) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
