package agent

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/peerprobe"
	"github.com/weft-cni/weft/pkg/report"
)

// probeProblem is the part that asks peer nodes.
const probeProblem = "probes of peer nodes"

// reopenAfter is the pause after sockets could not be opened or read.
const reopenAfter = 10 * time.Second

// probePeers asks peer nodes as long as the setting says so.
func (a *Agent) probePeers(ctx context.Context, woken <-chan struct{}, ready func()) error {
	ready()
	for ctx.Err() == nil {
		if !a.config().PeerProbes {
			sleepOr(ctx, syncEvery, woken)
			continue
		}
		prober, err := peerprobe.Open(ctx)
		if err == nil {
			err = a.runProber(ctx, prober, woken)
		}
		a.setProblem(probeProblem, err)
		if err != nil {
			sleep(ctx, reopenAfter)
		}
	}
	return nil
}

// runProber runs until the context ends, the setting is turned off, or answers cannot be read.
func (a *Agent) runProber(ctx context.Context, prober *peerprobe.Prober, woken <-chan struct{}) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	a.tellProber(prober)
	go func() { ended <- prober.Run(ctx) }()
	a.prober.Store(prober)
	defer a.prober.Store(nil)
	a.setProblem(probeProblem, nil)
	for a.config().PeerProbes {
		select {
		case <-woken:
			a.tellProber(prober)
		case err := <-ended:
			return err
		}
	}
	stop()
	return <-ended
}

// tellProber tells whom to ask, and how large pods' packets are.
func (a *Agent) tellProber(prober *peerprobe.Prober) {
	a.mu.Lock()
	mtu := a.mtu
	a.mu.Unlock()
	prober.Set(peersToAsk(a.loop.View()), mtu)
}

// peersToAsk are the peer nodes that there are paths to. A gateway is asked when this node has one of its family.
func peersToAsk(view *model.Snapshot) []peerprobe.Peer {
	own := view.SelfPath().PodCIDRs
	var peers []peerprobe.Peer
	for name, path := range view.Paths {
		if !path.Reachable() {
			continue
		}
		peer := peerprobe.Peer{Name: name}
		for _, cidr := range path.PodCIDRs {
			if slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Addr().Is4() == cidr.Addr().Is4() }) {
				peer.Gateways = append(peer.Gateways, model.GatewayAddr(cidr))
			}
		}
		if len(peer.Gateways) > 0 {
			peers = append(peers, peer)
		}
	}
	return peers
}

// probes are what is known about peer nodes.
func (a *Agent) probes() map[string]report.Probe {
	prober := a.prober.Load()
	if prober == nil {
		return nil
	}
	probes := map[string]report.Probe{}
	for name, r := range prober.Results() {
		probes[name] = report.Probe(r)
	}
	return probes
}

// peerStates counts the peer nodes by whether packets arrive there. There is none before there is a snapshot.
type peerStates struct{ agent *Agent }

var peerNodes = prometheus.NewDesc("weft_peer_nodes",
	"Peer nodes by state: reachable (its gateway answers), unreachable (it does not, or there is no path), unknown (not "+
		"asked, or not answered yet); weftctl status names them.", []string{"state"}, nil)

var peerTransports = prometheus.NewDesc("weft_peer_transports",
	"Peer nodes by how packets travel to their pods: overlay, direct, ipip, wireguard, or none for no path; weftctl status "+
		"names them and says why.", []string{"transport"}, nil)

// Describe implements prometheus.Collector.
func (peerStates) Describe(ch chan<- *prometheus.Desc) {
	ch <- peerNodes
	ch <- peerTransports
}

// Collect implements prometheus.Collector.
func (p peerStates) Collect(ch chan<- prometheus.Metric) {
	p.agent.mu.Lock()
	loop := p.agent.loop
	p.agent.mu.Unlock()
	if loop == nil {
		return
	}
	peers := report.PeerNodes(loop.View(), p.agent.probes())
	for state, n := range countPeers(peers) {
		ch <- prometheus.MustNewConstMetric(peerNodes, prometheus.GaugeValue, float64(n), state)
	}
	for transport, n := range countTransports(peers) {
		ch <- prometheus.MustNewConstMetric(peerTransports, prometheus.GaugeValue, float64(n), transport)
	}
}

// countTransports counts every transport, those without a node, too.
func countTransports(nodes []report.Node) map[string]int {
	counts := map[string]int{"overlay": 0, "direct": 0, "ipip": 0, "wireguard": 0, "none": 0}
	for _, n := range nodes {
		counts[cmp.Or(string(n.Transport), "none")]++
	}
	return counts
}

// countPeers counts every state, those without a node, too.
func countPeers(nodes []report.Node) map[string]int {
	counts := map[string]int{"reachable": 0, "unreachable": 0, "unknown": 0}
	for _, n := range nodes {
		switch {
		case n.Unreachable != "":
			counts["unreachable"]++
		case n.RTTSeconds > 0:
			counts["reachable"]++
		default:
			counts["unknown"]++
		}
	}
	return counts
}
