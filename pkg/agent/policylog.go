package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
)

// policyLog writes down what policies with Log decide. While there are such policies, one program listens for the
// copies of packets that their flows send; else there is none. It belongs to the goroutine that calls sync.
type policyLog struct {
	sw   packetSource
	log  *slog.Logger
	view func() *model.Snapshot

	stop    context.CancelFunc // ends the listener; nil when there is no listener
	stopped chan struct{}      // closed when it has ended
	checked time.Time          // when the meters were looked at
	held    map[openflow.MeterID]uint64
}

// packetSource is the switch as the policy log needs it (pkg/ofswitch).
type packetSource interface {
	SetMeters(ctx context.Context, meters []openflow.Meter) error
	HeldBack(ctx context.Context) (map[openflow.MeterID]uint64, error)
	Packets(ctx context.Context, each func(openflow.PacketIn)) error
}

// meterPause is how often the meters are looked at: whether another program removed them, and what they have held back.
const meterPause = 30 * time.Second

// listenPause is how long the policy log waits before it listens again.
const listenPause = 200 * time.Millisecond

// sync listens if a policy asks for it. An error means that it is to be called again soon.
func (l *policyLog) sync(ctx context.Context) error {
	if !logging(l.view()) {
		l.close()
		return nil
	}
	if l.stop == nil || time.Since(l.checked) >= meterPause {
		// The loop has made sure of them, but that was then.
		if err := l.sw.SetMeters(ctx, flows.Meters); err != nil {
			return err
		}
		if err := l.tellHeld(ctx); err != nil {
			return err
		}
		l.checked = time.Now()
	}
	if l.stop == nil {
		ctx, l.stop = context.WithCancel(ctx)
		l.stopped = make(chan struct{})
		go func() { defer close(l.stopped); l.listen(ctx) }()
	}
	return nil
}

// listen reads copies until the context ends, whatever becomes of the switch meanwhile.
func (l *policyLog) listen(ctx context.Context) {
	for pause := listenPause; ctx.Err() == nil; pause = min(2*pause, meterPause) {
		begun := time.Now()
		err := l.sw.Packets(ctx, func(p openflow.PacketIn) { l.write(ctx, p) })
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > meterPause {
			pause = listenPause
		}
		l.log.Warn("policy log: lost the switch; trying again", "err", err)
		sleep(ctx, pause)
	}
}

// close ends the listener.
func (l *policyLog) close() {
	if l.stop != nil {
		l.stop()
		<-l.stopped
		l.stop, l.held = nil, nil
	}
}

func logging(view *model.Snapshot) bool {
	for _, p := range view.Policies {
		if p.Log {
			return true
		}
	}
	return false
}

// tellHeld says how many packets were not written down because there were too many.
func (l *policyLog) tellHeld(ctx context.Context) error {
	now, err := l.sw.HeldBack(ctx)
	if err != nil {
		return err
	}
	since := func(m openflow.Meter) uint64 {
		n := now[m.ID]
		if before := l.held[m.ID]; before <= n {
			n -= before
		}
		return n
	}
	denied, allowed, staged := since(flows.MeterDenied), since(flows.MeterAllowed), since(flows.MeterStaged)
	if l.held != nil && denied+allowed+staged > 0 {
		l.log.Info("policy log: too many packets, these were not logged", "denied", denied, "allowed", allowed,
			"staged", staged)
	}
	l.held = now
	return nil
}

// write writes down one packet. It is called on the listener's goroutine.
func (l *policyLog) write(ctx context.Context, p openflow.PacketIn) {
	d, ok := flows.DecisionOf(p)
	if !ok {
		return
	}
	view := l.view()
	policies := ""
	if d.Index == flows.Isolation {
		policies = strings.Join(isolating(view, d, p), ",")
	} else {
		for id, policy := range view.Policies {
			if flows.Cookie(policy.Owner()) == p.Cookie {
				policies = id.String()
			}
		}
	}
	attrs := []slog.Attr{slog.String("src", p.Source.String()), slog.String("dst", p.Destination.String())}
	if p.DestinationPort != 0 {
		attrs = append(attrs, slog.Int("port", int(p.DestinationPort)))
	}
	attrs = append(attrs, slog.String("proto", strings.TrimSuffix(p.Protocol, "6")),
		slog.String("verdict", report.VerdictName(d)), slog.String("tier", d.Tier.String()),
		slog.String("policy", policies), slog.String("direction", string(d.Direction)))
	if d.Index != flows.Isolation {
		attrs = append(attrs, slog.Int("rule", d.Index))
	}
	if d.Staged {
		attrs = append(attrs, slog.Bool("staged", true))
	}
	if pod := podAt(view, subject(d.Direction, p)); pod != "" {
		attrs = append(attrs, slog.String("pod", pod))
	}
	l.log.LogAttrs(ctx, slog.LevelInfo, "policy log", attrs...)
}

// subject is the end of a packet that a policy's selector is about.
func subject(d model.Direction, p openflow.PacketIn) netip.Addr {
	if d == model.Egress {
		return p.Source
	}
	return p.Destination
}

// isolating lists the policies that deny together: those that isolate the packet's pod. The preview's do with the
// staged ones.
func isolating(view *model.Snapshot, d flows.Rule, p openflow.PacketIn) []string {
	addr := subject(d.Direction, p)
	var names []string
	for id, policy := range view.Policies {
		side := policy.Side(d.Direction)
		if side == nil || policy.Tier.Ordered() || policy.Staged && !d.Staged {
			continue
		}
		if _, isolated := slices.BinarySearchFunc(side.Pods, addr, netip.Addr.Compare); isolated {
			names = append(names, id.String())
		}
	}
	slices.Sort(names)
	return names
}

func podAt(view *model.Snapshot, addr netip.Addr) string {
	for _, a := range view.Attachments {
		if slices.Contains(a.IPs, addr) {
			return a.Pod.String()
		}
	}
	return ""
}
