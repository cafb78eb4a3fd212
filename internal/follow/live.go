package follow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/capture"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/trace/walk"
)

// Bounds of a live trace. Captures end by themselves, should this program end before it ends them.
const (
	liveNodes    = 16
	livePackets  = 3
	liveWait     = 2 * time.Second  // for a packet and its answer
	liveStart    = 30 * time.Second // for captures to begin, over kubectl exec
	liveCaptures = liveStart + 2*liveWait
	liveCounters = 3 * time.Second // ovs-vswitchd brings counters up to date about every half second
)

// The source ports of packets: above those that Linux gives to programs, and below the last one.
const livePortMin, livePortMax = 61000, 65000

// LiveLong says in the help of commands what --live does.
const LiveLong = "--live also sends the first packet of the connection from the pod FROM, as if it came from the pod's program, and shows\n" +
	"beside each step where captures on the nodes have seen it and its answer, and which flows have counted; the last line says\n" +
	"whether it did as the trace says. It leaves nothing behind but a tracked connection until its timeout."

// Live is Trace with a packet that is really sent, through nodes whose agents these are. The error is cli.Found unless
// the connection is established, by the trace and by the packet.
func Live(cmd *cobra.Command, q Question, agents map[string]api.Client, format terminal.Format, verbose bool) error {
	cluster, err := walk.New(q.Nodes, walk.Options{})
	if err != nil {
		fmt.Fprintln(cmd.ErrOrStderr(), err)
	}
	queries, err := cluster.Resolve(q.From, q.To, q.Namespace)
	if err != nil {
		return err
	}
	traces := make([]walk.Trace, len(queries))
	established := true
	for i, query := range queries {
		l := live{cluster: cluster, agents: agents, before: q.Nodes}
		if traces[i], err = l.trace(cmd.Context(), query); err != nil {
			return err
		}
		established = established && traces[i].Live.Agrees && traces[i].Live.Established
	}
	err = format.Print(cmd.OutOrStdout(), traces, func(w io.Writer) error { return walk.Write(w, traces, verbose) })
	if err != nil || established && walk.Established(traces) {
		return err
	}
	return cli.Found
}

// live sends packets of one connection.
type live struct {
	cluster *walk.Cluster
	agents  map[string]api.Client
	before  []walk.Node
}

// trace sends a packet, and others with other source ports while they do not do as the trace says: a single one may be
// lost for a reason that is none.
func (l *live) trace(ctx context.Context, q walk.Query) (t walk.Trace, err error) {
	if q.From.Pod == "" || q.From.Node == "" {
		return t, fmt.Errorf("--live sends packets from pods, and %s is none", q.From)
	}
	for sent := 1; sent <= livePackets; sent++ {
		q.SrcPort = uint16(livePortMin + rand.IntN(livePortMax-livePortMin))
		t = l.cluster.Trace(q)
		if err := l.send(ctx, &t, sent); err != nil {
			return t, err
		}
		if t.Live.Agrees {
			break
		}
	}
	return t, l.count(ctx, &t)
}

// watched is what the captures of all nodes have seen.
type watched struct {
	mu   sync.Mutex
	seen []walk.Sighting
	news chan struct{} // has room for one
}

// send sends a packet while the nodes of the trace capture it, and compares.
func (l *live) send(ctx context.Context, t *walk.Trace, sent int) error {
	nodes := t.Nodes()
	if len(nodes) > liveNodes {
		return fmt.Errorf("the connection may lead through %d nodes, and --live captures on %d at most: name an endpoint", len(nodes),
			liveNodes)
	}
	for _, n := range nodes {
		if _, ok := l.agents[n]; !ok {
			return fmt.Errorf("the agent of node %s was not asked", n)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, running := errgroup.WithContext(ctx)
	begun := make(chan struct{}, len(nodes))
	w := watched{news: make(chan struct{}, 1)}
	for _, node := range nodes {
		group.Go(func() error {
			err := l.agents[node].Capture(running, liveRequest(t.Query), w.record(t, node, begun))
			if ctx.Err() != nil {
				return nil //nolint:nilerr // it was ended below
			}
			return fmt.Errorf("capture on node %s: %w", node, errors.Join(err, errors.New("it has ended early")))
		})
	}
	late := time.After(liveStart)
	for range nodes {
		select {
		case <-begun:
		case <-running.Done():
			return group.Wait()
		case <-late:
			return fmt.Errorf("captures have not begun on all of %v within %s", nodes, liveStart)
		}
	}
	q := t.Query
	err := l.agents[q.From.Node].Send(ctx, api.SendRequest{Pod: q.From.Pod, Source: netip.AddrPortFrom(q.Src, q.SrcPort),
		Destination: q.To, Protocol: q.Protocol})
	if err != nil {
		return fmt.Errorf("send a packet from pod %s: %w", q.From.Pod, err)
	}
	for end := time.After(liveWait); ; {
		select {
		case <-w.news:
			w.compare(t, sent)
			if !t.Done() {
				continue
			}
		case <-running.Done():
			return group.Wait()
		case <-end:
			w.compare(t, sent)
		}
		cancel()
		return group.Wait()
	}
}

// liveRequest is for all packets of a connection, at all ports of a node.
func liveRequest(q walk.Query) capture.Request {
	r := capture.Request{At: capture.AtAll, Protocol: capture.Protocol(walk.ProtocolName(q.Protocol)), Port: q.SrcPort,
		SnapLen: capture.MinSnapLen, Time: liveCaptures}
	if r.Protocol == capture.ICMP {
		r.Port = 0
	}
	return r
}

// record takes the records of a node's capture.
func (w *watched) record(t *walk.Trace, node string, begun chan<- struct{}) func(capture.Record) error {
	var ports []capture.Port
	names := capture.Names{}
	return func(r capture.Record) error {
		switch {
		case r.Ports != nil:
			ports = r.Ports
			begun <- struct{}{}
		case r.Name != nil:
			names.Set(*r.Name)
		case r.Packet != nil && 0 <= r.Packet.Port && r.Packet.Port < len(ports):
			s, ok := t.Sighted(node, ports[r.Packet.Port], *r.Packet, names)
			if !ok {
				return nil
			}
			w.mu.Lock()
			w.seen = append(w.seen, s)
			w.mu.Unlock()
			select {
			case w.news <- struct{}{}:
			default:
			}
		case r.End != nil:
			return errors.New(r.End.Reason)
		}
		return nil
	}
}

func (w *watched) compare(t *walk.Trace, sent int) {
	w.mu.Lock()
	seen := slices.Clone(w.seen)
	w.mu.Unlock()
	t.Compare(sent, seen)
}

// count asks the nodes of the path what its flows have counted, until all have or the time is over: those of a packet
// that was lost do not.
func (l *live) count(ctx context.Context, t *walk.Trace) error {
	nodes := t.Nodes()
	ticker := time.NewTicker(liveCounters / 5)
	defer ticker.Stop()
	for end := time.Now().Add(liveCounters); ; {
		after := make([]walk.Node, len(nodes))
		var group errgroup.Group
		for i, n := range nodes {
			group.Go(func() (err error) {
				if after[i], err = l.agents[n].Trace(ctx); err != nil {
					err = fmt.Errorf("node %s: %w", n, err)
				}
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		if t.Count(l.before, after) || time.Now().After(end) {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
