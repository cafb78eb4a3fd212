package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/weft-cni/weft/internal/testing/vswitch"
	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/host"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/ovsdb"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/programmer"
	"github.com/weft-cni/weft/pkg/state"
)

// node is a node's Open vSwitch and the parts of the agent that CNI needs.
type node struct {
	socket string
	phases *phases
	stop   func() error
}

func startNode(ctx context.Context, dir, datapath string) (n *node, err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	n = &node{socket: filepath.Join(dir, "agent", "cni.sock"), phases: &phases{}}
	n.phases.reset()
	var undo []func() error
	n.stop = func() error {
		var errs []error
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i]())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.stop())
		}
	}()
	ovs, err := vswitch.Start(ctx, vswitch.Config{RunDir: filepath.Join(dir, "ovs"), DataDir: filepath.Join(dir,
		"ovsdata")})
	if err != nil {
		return n, err
	}
	undo = append(undo, ovs.Stop)
	db, err := ovsdb.Connect(ctx, "unix:"+ovs.DBSocket(), model.BridgeName, log)
	if err != nil {
		return n, err
	}
	undo = append(undo, func() error { db.Close(); return nil })
	if _, err := db.EnsureBridge(ctx, ovsdb.Bridge{Datapath: datapath}); err != nil {
		return n, err
	}
	settings := cni.Settings{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.98.0.0/24")}, MTU: podMTU,
		UserspaceDatapath: datapath == "netdev"}
	// The agent's own loop, as the agent starts it: the node and its settings first.
	self := model.Node{Name: "bench", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodCIDRs: settings.PodCIDRs}
	sw := ofswitch.New(ovs.RunDir(), ovs.RunDir(), model.BridgeName, ofswitch.Userspace)
	loop := programmer.New(programmer.Options{Node: self.Name, Switch: sw, Log: log})
	loop.Submit(state.SetTransport{Transport: model.Tunnel(model.Geneve)})
	loop.Submit(state.SetNode{Node: self})
	nft, err := host.NFTables()
	if err != nil {
		return n, err
	}
	server := cni.NewServer(cni.Config{
		Socket:         n.socket,
		Settings:       func() cni.Settings { return settings },
		Ports:          db,
		Flows:          told{loop},
		FilterPodLinks: host.New(nft, "/proc/sys", log).FilterPodLinks,
		Log:            log,
		Observe:        n.phases.observe,
	})
	if _, err := server.Recover(ctx); err != nil {
		return n, err
	}
	serveCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var serving sync.WaitGroup
	var serveErr error
	var loopErr error
	serving.Go(func() { loopErr = loop.Run(serveCtx) })
	serving.Go(func() { serveErr = server.Serve(serveCtx) })
	undo = append(undo, func() error { cancel(); serving.Wait(); return errors.Join(serveErr, loopErr) })
	return n, waitFor(n.socket)
}

// told is a loop that the API server has told of every pod before it is attached.
type told struct{ *programmer.Loop }

func (l told) Attach(ctx context.Context, a model.Attachment) error {
	l.Submit(state.SetPod{Pod: policy.Pod{Namespace: a.Pod.Namespace, Name: a.Pod.Name, UID: a.Pod.UID}})
	return l.Loop.Attach(ctx, a)
}

func waitFor(socket string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the CNI server does not listen: %w", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
