package main

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// resolve looks many names up at once. A name without an answer is a result, not a failure of the command.
func resolve(_ []string) error {
	var request wire.ResolveRequest
	if err := readJSON(&request); err != nil {
		return err
	}
	return printJSON(resolveAll(request))
}

func resolveAll(request wire.ResolveRequest) wire.ResolveReply {
	reply := wire.ResolveReply{Answers: make([]wire.Answer, len(request.Queries))}
	var wg sync.WaitGroup
	for i, q := range request.Queries {
		wg.Go(func() { reply.Answers[i] = lookUp(q) })
	}
	wg.Wait()
	return reply
}

func lookUp(q wire.Query) wire.Answer {
	ctx, cancel := context.WithTimeout(context.Background(), q.Timeout)
	defer cancel()
	resolver := net.Resolver{PreferGo: true}
	if q.Server.IsValid() {
		// The resolver sees by the connection's type whether it speaks UDP or TCP.
		resolver.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, q.Net, q.Server.String())
		}
	}
	network := "ip6"
	if q.IPv4 {
		network = "ip4"
	}
	answer := wire.Answer{Query: q}
	start := time.Now()
	addrs, err := resolver.LookupNetIP(ctx, network, q.Name)
	answer.RTT = time.Since(start)
	if err != nil {
		answer.Error = err.Error()
	}
	for _, addr := range addrs {
		answer.Addrs = append(answer.Addrs, addr.Unmap())
	}
	slices.SortFunc(answer.Addrs, netip.Addr.Compare)
	return answer
}
