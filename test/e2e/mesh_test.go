//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab/datapath"
)

// What one attempt may take, and how many there are. The machine is small and busy; a repeated attempt is logged.
const dialAttempts = 3

var dialTimeout = testenv.Patience(3 * time.Second)

// smallPayload fits into one packet.
const smallPayload = 64

// largeDatagram has to be fragmented: more than forty times, or as often as Open vSwitch's userspace datapath can put
// together again for connection tracking (NETDEV_MAX_BURST, 32 packets; docs/install.md).
func largeDatagram() int {
	if env.record.Datapath == datapath.Netdev {
		return 40_000
	}
	return 60_000
}

// target fills in what all targets have in common.
func target(name string, proto wire.Proto, addr netip.Addr, port uint16, size int) wire.Target {
	return wire.Target{Name: name, Proto: proto, Addr: addr, Port: port, Size: size, Attempts: dialAttempts,
		Timeout: dialTimeout}
}

// targetsOf are ICMP, TCP and UDP to every address of a pod.
func targetsOf(p *pod) []wire.Target {
	var targets []wire.Target
	for _, addr := range p.addrs {
		for _, proto := range []wire.Proto{wire.ICMP, wire.TCP, wire.UDP} {
			targets = append(targets, target(p.String(), proto, addr, p.echo, smallPayload))
		}
	}
	return targets
}

// dialer runs a dial request somewhere: in a pod, or outside the cluster.
type dialer interface {
	dial(ctx context.Context, request wire.DialRequest) (wire.DialReply, error)
	String() string
}

// comparableDialer is what a map of dialers may have as its key: one kind of them, or all.
type comparableDialer interface {
	comparable
	dialer
}

func (p *pod) dial(ctx context.Context, request wire.DialRequest) (wire.DialReply, error) {
	var reply wire.DialReply
	err := p.probe(ctx, request, &reply, "dial")
	return reply, err
}

// reach dials every target of every dialer, all dialers at once, and fails the test with one line for each target that
// was not reached. It returns what was, by dialer.
func reach[D comparableDialer](t *testing.T, wanted map[D][]wire.Target) map[D][]wire.Result {
	t.Helper()
	type answer struct {
		from  D
		reply wire.DialReply
		err   error
	}
	answers := make(chan answer, len(wanted))
	start := time.Now()
	for from, targets := range wanted {
		go func() {
			reply, err := from.dial(t.Context(), wire.DialRequest{Targets: targets})
			answers <- answer{from, reply, err}
		}()
	}
	reached := map[D][]wire.Result{}
	var failures, repeated []string
	tried := 0
	for range wanted {
		a := <-answers
		if a.err != nil {
			failures = append(failures, fmt.Sprintf("%s: %v", a.from, a.err))
			continue
		}
		for _, r := range a.reply.Results {
			tried++
			line := fmt.Sprintf("%s → %s (%s) %s, %d bytes: %s", a.from, r.Target.Name, r.Target.Addr, r.Target.Proto,
				r.Target.Size, r.Error)
			switch {
			case !r.OK():
				failures = append(failures, line)
				continue
			case r.Attempts > 1:
				repeated = append(repeated, fmt.Sprintf("%s reached at attempt %d", line, r.Attempts))
			}
			reached[a.from] = append(reached[a.from], r)
		}
	}
	if len(repeated) > 0 {
		t.Logf("%d needed more than one attempt:\n  %s", len(repeated), strings.Join(repeated, "\n  "))
	}
	if len(failures) > 0 {
		t.Fatalf("%d of %d not reached:\n  %s", len(failures), tried, strings.Join(failures, "\n  "))
	}
	t.Logf("%d reached from %d places in %.1f s", tried, len(wanted), time.Since(start).Seconds())
	return reached
}

// Every ordered pair of pods, itself included, in every family and by every protocol; and no address is changed on
// the way.
func TestMesh(t *testing.T) {
	pods, _ := meshPods(t)
	wanted := map[*pod][]wire.Target{}
	for _, from := range pods {
		for _, to := range pods {
			wanted[from] = append(wanted[from], targetsOf(to)...)
		}
	}
	for from, results := range reach(t, wanted) {
		for _, r := range results {
			own := familyOf(r.Target.Addr).of(from.addrs)
			if r.Target.Proto != wire.ICMP && r.Observed.Addr() != own {
				t.Errorf("%s → %s by %s: arrives from %s, want the pod's own %s", from, r.Target.Name, r.Target.Proto, r.Observed,
					own)
			}
		}
	}
}

// Large datagrams go from one pod at a time, since a fragment lost to a full buffer would cost the whole.
func TestLargeDatagrams(t *testing.T) {
	pods, _ := meshPods(t)
	for i, from := range pods {
		var large []wire.Target
		for _, to := range []*pod{pods[(i+1)%len(pods)], pods[(i+2)%len(pods)]} {
			for _, addr := range to.addrs {
				large = append(large, target(to.String(), wire.UDP, addr, to.echo, largeDatagram()))
			}
		}
		reach(t, map[*pod][]wire.Target{from: large})
	}
}

func TestLargeTransfers(t *testing.T) {
	const size = 50_000_000
	pods, _ := meshPods(t)
	for _, pair := range [][2]*pod{{pods[0], pods[2]}, {pods[2], pods[4]}, {pods[0], pods[1]}} {
		from, to := pair[0], pair[1]
		for _, addr := range to.addrs {
			var got wire.Transfer
			err := from.probe(t.Context(), nil, &got, "transfer", "--to="+netip.AddrPortFrom(addr, to.web).String(),
				fmt.Sprintf("--bytes=%d", size))
			if err != nil {
				t.Errorf("%s → %s (%s): %v", from, to, addr, err)
				continue
			}
			t.Logf("%s → %s (%s): %d MB in %.1f s, %.0f Mbit/s", from, to, familyOf(addr), size/1_000_000, got.Seconds,
				size*8/1e6/got.Seconds)
		}
	}
}
