package cache_test

import (
	"strings"
	"testing"

	"github.com/weft-cni/weft/test/datapath/cache"
)

// What `ovs-appctl dpctl/dump-flows` of Open vSwitch 3.1 prints for the userspace datapath. Two connections begin,
// through recirculation 0x2, to be seen by a hash; of established packets one is recirculated once, and one, in port
// 4, twice.
const dump = `flow-dump from the main thread:
recirc_id(0),in_port(7),packet_type(ns=0,id=0),eth(src=0a:58:0a:f4:00:02,dst=0a:57:65:66:74:01/01:00:00:00:00:00),eth_type(0x0800),ipv4(src=10.244.0.2,dst=10.244.0.3/255.255.255.254,frag=no), packets:2, bytes:90, used:2.147s, actions:ct(zone=22373,nat),recirc(0x1)
ct_state(-new+est-rel-rpl-inv+trk),ct_mark(0x1/0x7),recirc_id(0x1),in_port(7),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(dst=10.244.0.3,proto=6,frag=no),tcp(dst=8080), packets:1, bytes:142, used:2.147s, flags:P., actions:8
ct_state(+new-est-rel-rpl-inv+trk),ct_mark(0/0x7),recirc_id(0x1),in_port(7),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(dst=10.244.0.9,frag=no), packets:0, bytes:0, used:never, actions:hash(l4(0)),recirc(0x2)
ct_state(-new+est-rel+rpl-inv+trk),ct_mark(0x1/0x7),recirc_id(0x3),in_port(8),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(dst=10.244.0.2,proto=6,frag=no),tcp(src=8080,dst=40001), packets:1, bytes:66, used:1s, actions:7
ct_state(-new+est-rel+rpl-inv+trk),ct_mark(0x1/0x7),recirc_id(0x3),in_port(8),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(dst=10.244.0.2,proto=6,frag=no),tcp(src=8080,dst=40002), packets:1, bytes:66, used:1s, actions:7
ct_state(-new+est-rel+rpl-inv+trk),ct_mark(0x1/0x7),recirc_id(0x3),in_port(8),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(dst=10.244.0.2,proto=6,frag=no),tcp(src=8080,dst=40003), packets:1, bytes:66, used:1s, actions:7
tunnel(tun_id=0x0,src=172.31.0.12,dst=172.31.0.11,geneve({}{}),flags(-df-csum+key)),recirc_id(0),in_port(4),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(frag=no), packets:1, bytes:90, used:1s, actions:ct(zone=22373,nat),recirc(0x4)
recirc_id(0x4),in_port(4),packet_type(ns=0,id=0),eth_type(0x0800),ipv4(frag=no), packets:1, bytes:90, used:1s, actions:ct(zone=22374,nat),recirc(0x5)
`

func TestMasks(t *testing.T) {
	entries := cache.Parse(dump)
	if len(entries) != 8 {
		t.Fatalf("%d entries, want 8", len(entries))
	}
	const want = "3 entries differ only in tcp.dst (3 values); all match ct_mark/0x7,ct_state,eth_type,in_port,ipv4.dst,ipv4.frag,ipv4.proto,packet_type.id,packet_type.ns,recirc_id,tcp.dst,tcp.src\n"
	if got := cache.Masks(entries); !strings.HasPrefix(got, want) || strings.Count(got, "\n") != 6 {
		t.Errorf("masks:\n%swant first, of 6:\n%s", got, want)
	}
	if got := cache.CountMasks(entries); got != 6 {
		t.Errorf("%d masks, want 6", got)
	}
	if got := entries[6].Match; got["tunnel.src"] != "172.31.0.12" || got["recirc_id"] != "0" {
		t.Errorf("an entry of a tunnel matches %v", got)
	}
	if got := entries[0].Match["eth.dst"]; got != "0a:57:65:66:74:01/01:00:00:00:00:00" {
		t.Errorf("eth.dst is %s", got)
	}
}

func TestRecirculations(t *testing.T) {
	entries := cache.Parse(dump)
	if got := cache.Recirculations(entries); got != 2 {
		t.Errorf("%d recirculations, want 2, of what comes in port 4", got)
	}
	if got := cache.Chain(entries); strings.Count(got, "in_port=4") != 2 || !strings.Contains(got, "recirc(0x5)") {
		t.Errorf("the entries on its way:\n%s", got)
	}
	// A new connection's second one is for its hash.
	if got := cache.Recirculations(entries[:6]); got != 1 {
		t.Errorf("%d recirculations without it, want 1", got)
	}
}
