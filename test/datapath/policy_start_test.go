//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

const (
	startRounds   = 10
	startsInRound = 10
	floodPort     = 8080
)

// floodEvery is the time between two rounds of a flood: each pod is sent eight frames by enemies in that time. A slow
// machine, which takes as much longer for everything, is given less: what starves it has no effect on others.
func floodEvery() time.Duration { return testenv.Patience(testenv.Patience(5 * time.Millisecond)) }

const (
	enemyNear = "near!" // marks
	enemyFar  = "far!!"
	friendTag = "frnd!"
)

// An isolated pod receives nothing that its policy forbids, from the first moment of its life to the last: a flood
// towards its address runs before it starts, while it stands and while it goes. What arrives is counted at the node's
// end of the pod's veth, from before there is one. A friend, whom the policy allows, floods it too and does arrive: so
// the tap hears.
func TestPolicyFromTheFirstMoment(t *testing.T) {
	w := upWalled(t, "polstart", map[string]string{
		"base.yaml": walledPod("start", "near", "node1", "app: enemy") + walledPod("start", "far", "node2", "app: enemy") +
			walledPod("start", "friend", "node2", "app: friend") +
			policyManifest("start", "wall",
				"podSelector: {matchLabels: {app: victim}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]"),
	})
	near, far, friend := w.pod(t, "near"), w.pod(t, "far"), w.pod(t, "friend")
	host := w.host(t, "node1")
	known := map[int]bool{} // interfaces other than victims'
	tags := []string{enemyNear, enemyFar, friendTag}
	all := host.listen(t, "", func(h heard) bool { return h.leaving && slices.Contains(tags, h.tag) })
	for _, index := range host.interfaces(t) {
		known[index] = true
	}
	// The allocator goes on from the last address that it gave.
	last := near.ips
	var targets atomic.Pointer[[]netip.Addr]
	aim := func() {
		var next []netip.Addr
		for _, addr := range last {
			for range startsInRound {
				addr = addr.Next()
				next = append(next, addr)
			}
		}
		targets.Store(&next)
	}
	aim()
	var pumps []*pump
	for _, one := range []struct {
		from *client
		tag  string
	}{{near, enemyNear}, {far, enemyFar}, {friend, friendTag}} {
		var aimed *[]netip.Addr
		var frames [][]byte
		mac := one.from.mac(t)
		pumps = append(pumps, one.from.pump(t, floodEvery(), func() [][]byte {
			if now := targets.Load(); now != aimed {
				aimed, frames = now, one.from.attempts(mac, one.tag, floodPort, *now...)
			}
			return frames
		}))
	}
	begin, started, predicted := time.Now(), 0, 0
	for round := range startRounds {
		var text strings.Builder
		names := map[string]bool{}
		for i := range startsInRound {
			name := fmt.Sprintf("v%d-%d", round, i)
			names[name] = true
			text.WriteString(walledPod("start", name, "node1", "app: victim"))
		}
		// The pods of the round before go meanwhile, under the flood that was theirs until now.
		w.write(t, "victims.yaml", text.String())
		testenv.Eventually(t, 30*time.Second, func() error {
			count := 0
			s := w.Status()
			for _, p := range s.Pods {
				if p.Labels["app"] != "victim" {
					continue
				}
				if !names[p.Name] {
					return fmt.Errorf("pod %s is still there: %s", p.Name, s.Problem)
				}
				count++
			}
			if count != startsInRound {
				return fmt.Errorf("%d pods, want %d: %s", count, startsInRound, s.Problem)
			}
			return nil
		})
		aimed := *targets.Load()
		for _, p := range w.Status().Pods {
			if !names[p.Name] {
				continue
			}
			started++
			for i, ip := range p.IPs {
				if slices.Contains(aimed, ip) {
					predicted++
				}
				if last[i].Less(ip) {
					last[i] = ip
				}
			}
		}
		// Everybody sends to those that are up now, too, before the flood goes elsewhere.
		for _, p := range pumps {
			sent := p.rounds.Load()
			testenv.Eventually(t, 10*time.Second, func() error {
				if p.rounds.Load() < sent+2 {
					return errors.New("the flood has stopped")
				}
				return nil
			})
		}
		aim()
	}
	isVictims := func(h heard) bool { return !known[h.iface] }
	forbidden := all.heard(func(h heard) bool { return isVictims(h) && h.tag != friendTag })
	if len(forbidden) > 0 {
		t.Errorf("forbidden packets arrived at isolated pods: %s", describe(forbidden))
	}
	reached := map[int]bool{}
	allowed := all.heard(func(h heard) bool { return isVictims(h) && h.tag == friendTag })
	for _, h := range allowed {
		reached[h.iface] = true
	}
	if want := startRounds * startsInRound; started != want || predicted != 2*want || len(reached) != want {
		t.Errorf("%d starts; %d addresses were flooded from before, the friend reached %d pods; want %d starts", started,
			predicted, len(reached), want)
	}
	t.Logf("%d starts in %.1f s: %d allowed packets arrived, %d forbidden ones", started, time.Since(begin).Seconds(),
		len(allowed), len(forbidden))
}
