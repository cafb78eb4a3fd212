//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// pingInterval is twenty a second: a gap of 50 ms shows.
const pingInterval = 50 * time.Millisecond

// steadyTraffic is a set of probes that keep sending while a test changes the cluster.
type steadyTraffic struct {
	sessions []*session
	from     []string
}

func (s *steadyTraffic) add(p *pod, session *session) {
	s.sessions, s.from = append(s.sessions, session), append(s.from, p.name)
}

// ping starts pinging every address of the pods in to.
func (s *steadyTraffic) ping(t *testing.T, from *pod, to ...*pod) {
	t.Helper()
	args := []string{"ping", "--interval=" + pingInterval.String()}
	for _, p := range to {
		for _, addr := range p.addrs {
			args = append(args, addr.String())
		}
	}
	s.add(from, from.start(t, args...))
}

// stream opens a TCP connection to every address of a pod and keeps sending through it.
func (s *steadyTraffic) stream(t *testing.T, from, to *pod) {
	t.Helper()
	for _, addr := range to.addrs {
		s.add(from, from.start(t, "stream", "--interval="+pingInterval.String(), "--to="+netip.AddrPortFrom(addr,
			to.echo).String()))
	}
}

// pingBetweenNodes pings from every node to every other one, to one pod each.
func pingBetweenNodes(t *testing.T, pods []*pod) *steadyTraffic {
	t.Helper()
	s := &steadyTraffic{}
	for i := range env.nodes {
		var to []*pod
		for j := range env.nodes {
			if j != i {
				to = append(to, pods[2*j])
			}
		}
		s.ping(t, pods[2*i], to...)
	}
	return s
}

// stop ends all probes and returns what each saw, with a name.
func (s *steadyTraffic) stop(t *testing.T) map[string]wire.Steady {
	t.Helper()
	results := map[string]wire.Steady{}
	for i, session := range s.sessions {
		var reply wire.SteadyReply
		session.stop(t, &reply)
		for _, series := range reply.Series {
			results[fmt.Sprintf("%s → %s (%s)", s.from[i], series.Addr, session.name)] = series
		}
	}
	return results
}

// wantNoLoss ends the traffic and fails the test for everything that was not answered.
func (s *steadyTraffic) wantNoLoss(t *testing.T) {
	t.Helper()
	total, lost, longest := 0, 0, time.Duration(0)
	for name, r := range s.stop(t) {
		total += r.Sent
		lost += r.Sent - r.Received
		longest = max(longest, r.LongestGap)
		if r.Received != r.Sent || r.SendErrors > 0 || r.FirstError != "" || r.Sent < 20 {
			t.Errorf("%s: %d sent, %d answered, lost %v, %d not sent, %s", name, r.Sent, r.Received, r.Lost, r.SendErrors,
				r.FirstError)
		}
	}
	t.Logf("%d sent, %d lost, longest time between two answers %d ms", total, lost, longest.Milliseconds())
}
