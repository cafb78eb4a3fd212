package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// knock opens a new TCP connection to every echo server at a fixed rate until its standard input is closed. A server
// that does not echo in time is lost.
func knock(args []string) error {
	flags := flag.NewFlagSet("knock", flag.ContinueOnError)
	interval := flags.Duration("interval", 50*time.Millisecond, "time between two connections to one server")
	timeout := flags.Duration("timeout", 5*time.Second, "how long a connection may take")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var servers []netip.AddrPort
	for _, arg := range flags.Args() {
		server, err := netip.ParseAddrPort(arg)
		if err != nil {
			return err
		}
		servers = append(servers, server)
	}
	if len(servers) == 0 {
		return fmt.Errorf("knock: name at least one ADDRESS:PORT")
	}
	return printJSON(knockUntil(servers, *interval, *timeout, ready()))
}

func knockUntil(servers []netip.AddrPort, interval, timeout time.Duration, done <-chan struct{}) wire.SteadyReply {
	tallies := make([]tally, len(servers))
	var wg sync.WaitGroup
	everyTick(interval, done, func() bool {
		for i, server := range servers {
			t := &tallies[i]
			seq := t.sending(time.Now())
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), timeout)
				defer cancel()
				if _, err := dialTCP(ctx, wire.Target{Addr: server.Addr(), Port: server.Port(), Size: 16}); err != nil {
					t.failed(fmt.Errorf("connection %d: %w", seq, err))
					return
				}
				t.got(seq, time.Now())
			})
		}
		return true
	})
	wg.Wait()
	var reply wire.SteadyReply
	for i := range tallies {
		result := tallies[i].result(time.Now())
		result.Addr = servers[i].Addr()
		reply.Series = append(reply.Series, result)
	}
	return reply
}
