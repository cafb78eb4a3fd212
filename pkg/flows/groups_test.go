package flows

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/digitalocean/go-openvswitch/ovs"
	"pgregory.net/rapid"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// world is what each owner means, in place of a snapshot: these tests are of the compiler itself.
type world map[model.Owner]compiled

func (w world) compiler() *Compiler {
	return newCompiler(func(_ *model.Snapshot, o model.Owner) (compiled, error) { return w[o], nil },
		func(*model.Snapshot) inputs { return nil })
}

// full is the compilation of all owners at once, less those that are left out.
func (w world) full(t rapid.TB, excluded map[model.Owner]bool) Desired {
	t.Helper()
	c := w.compiler()
	if _, failed := c.Update(nil, slices.Collect(maps.Keys(w))); len(failed) > 0 {
		t.Fatal(failed)
	}
	for o := range excluded {
		c.Exclude(o)
	}
	return c.Desired()
}

func line(t rapid.TB, o model.Owner, text string) Flow {
	t.Helper()
	e, err := openflow.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	e.Cookie = Cookie(o)
	return Flow{Flow: e.Flow, Owner: o}
}

// service is an owner with one group that leads to a table, and a flow that uses it.
func service(t rapid.TB, o model.Owner, id openflow.GroupID, weight uint16) compiled {
	t.Helper()
	g, err := openflow.NewGroup(id, openflow.DPHash(), []openflow.Bucket{{ID: 1, Weight: weight, Actions: []ovs.Action{
		openflow.CT{Commit: true, Table: PolicyEntry, Zone: Zone}.Action()}}})
	if err != nil {
		t.Fatal(err)
	}
	port := Cookie(o) & 0xfff
	return compiled{
		Flows: []Flow{line(t, o, fmt.Sprintf("table=40,priority=100,tcp,nw_dst=10.96.0.1,tp_dst=%d actions=group:%d", port,
			id))},
		Groups: []Group{{Group: g, Owner: o, Table: ServiceLB}},
	}
}

// wire is a switch that only ever gets deltas, and holds them to what a real one asks for.
type wire struct {
	flows  map[openflow.Key]openflow.Flow
	groups map[openflow.GroupID]openflow.Group
}

func (w *wire) apply(t rapid.TB, d Delta) {
	t.Helper()
	for _, g := range d.SetGroups {
		if w.groups[g.ID] == g.Group {
			t.Fatalf("delta sets %s again, which the switch has", g)
		}
		w.groups[g.ID] = g.Group
	}
	for _, f := range d.Delete {
		if w.flows[f.Key] != f.Flow {
			t.Fatalf("delta deletes %s, the switch has %s", f.Flow, w.flows[f.Key])
		}
		delete(w.flows, f.Key)
	}
	for _, f := range d.Set {
		if w.flows[f.Key] == f.Flow {
			t.Fatalf("delta sets %s again, which the switch has", f.Flow)
		}
		w.flows[f.Key] = f.Flow
	}
	for _, g := range d.DeleteGroups {
		if w.groups[g.ID] != g.Group {
			t.Fatalf("delta deletes %s, the switch has %s", g.Group, w.groups[g.ID])
		}
		delete(w.groups, g.ID)
	}
	for _, f := range w.flows {
		for _, id := range f.Actions.Groups() {
			if _, ok := w.groups[id]; !ok {
				t.Fatalf("%s uses a group that is not there", f)
			}
		}
	}
}

func (w *wire) contents() openflow.Contents {
	var c openflow.Contents
	for _, f := range w.flows {
		c.Flows = append(c.Flows, openflow.Entry{Flow: f})
	}
	return openflow.Contents{Flows: c.Flows, Groups: slices.Collect(maps.Values(w.groups))}
}

// TestGroupsAndClausesIncrementally makes random changes to owners whose groups want the same few numbers and whose
// clauses have the same few keys, leaves some out and takes them back, and compares after each: the table reached step
// by step, the table compiled fresh, and a switch that only ever got the deltas.
func TestGroupsAndClausesIncrementally(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, excluded := world{}, map[model.Owner]bool{}
		c := w.compiler()
		sw := &wire{map[openflow.Key]openflow.Flow{}, map[openflow.GroupID]openflow.Group{}}
		owners := []model.Owner{model.ServiceOwner("a"), model.ServiceOwner("b"), model.ServiceOwner("c"),
			model.NetworkPolicy("", "d").Owner(), model.NetworkPolicy("", "e").Owner()}
		for range rapid.IntRange(1, 25).Draw(t, "changes") {
			o := rapid.SampledFrom(owners).Draw(t, "owner")
			var delta Delta
			switch rapid.SampledFrom([]string{"change", "change", "change", "gone", "exclude"}).Draw(t, "change") {
			case "change":
				w[o] = drawCompiled(t, o)
				delete(excluded, o)
				delta, _ = c.Update(nil, []model.Owner{o})
			case "gone":
				delete(w, o)
				delete(excluded, o)
				delta, _ = c.Update(nil, []model.Owner{o})
			case "exclude":
				excluded[o] = true
				delta = c.Exclude(o)
			}
			sw.apply(t, delta)
			full := w.full(t, excluded)
			if full.String() != c.Desired().String() {
				t.Fatalf("incremental:\n%s\nfull:\n%s", c.Desired(), full)
			}
			for key, f := range full.Flows {
				if c.Desired().Flows[key] != f {
					t.Fatalf("%s belongs to %s, in a full compilation to %s", f, c.Desired().Flows[key].Owner, f.Owner)
				}
			}
			if delta := Diff(sw.contents(), full); !delta.Empty() {
				t.Fatalf("the switch that got the deltas differs from the full table: %+v", delta)
			}
			for id, g := range c.Desired().Groups {
				if g.ID != id || excluded[g.Owner] {
					t.Fatalf("group %d is %s of %s", id, g, g.Owner)
				}
			}
			for _, f := range c.Desired().Flows {
				for _, id := range f.Actions.Groups() {
					if got := c.Desired().Groups[id].Owner; got != f.Owner {
						t.Fatalf("%s of %s leads to a group of %s", f, f.Owner, got)
					}
				}
			}
		}
	})
}

func drawCompiled(t *rapid.T, o model.Owner) compiled {
	if o.Kind == model.KindService {
		all := compiled{}
		first := openflow.GroupID(rapid.IntRange(0, 2).Draw(t, "number"))
		for i := range openflow.GroupID(rapid.IntRange(0, 2).Draw(t, "groups")) {
			one := service(t, o, 1, uint16(rapid.IntRange(1, 2).Draw(t, "weight")))
			one.Groups[0].ID = groupMark | (first + i)
			one.Flows[0].Actions = openflow.ParseActions(fmt.Sprintf("group:%d", one.Groups[0].ID))
			one.Flows[0].Priority += uint16(i)
			all.Flows, all.Groups = append(all.Flows, one.Flows...), append(all.Groups, one.Groups...)
		}
		return all
	}
	all := compiled{}
	for range rapid.IntRange(0, 4).Draw(t, "clauses") {
		all.Flows = append(all.Flows,
			line(t, o, fmt.Sprintf("table=50,priority=100,ip,nw_src=10.0.0.%d actions=conjunction(%d,%d/2)",
				rapid.IntRange(1, 2).Draw(t, "peer"), rapid.IntRange(1, 3).Draw(t, "id"), rapid.IntRange(1, 2).Draw(t, "clause"))))
	}
	if rapid.IntRange(0, 4).Draw(t, "dispute") == 0 {
		all.Flows = append(all.Flows, line(t, o, "table=50,priority=100,ip,nw_src=10.0.0.1 actions=goto_table:54"))
	}
	return all
}

// TestClausesMerge: two policies that name one peer address give one flow, with the cookie of the first, whatever the
// order.
func TestClausesMerge(t *testing.T) {
	a, b := model.NetworkPolicy("ns", "a").Owner(), model.NetworkPolicy("ns", "b").Owner()
	const match = "table=50,priority=100,ip,nw_src=10.0.0.1 actions="
	w := world{
		a: {Flows: []Flow{line(t, a, match+"conjunction(9,1/2)"), line(t, a, match+"conjunction(2,1/3)")}},
		b: {Flows: []Flow{line(t, b, match+"conjunction(5,2/2)"), line(t, b, match+"conjunction(9,1/2)")}},
	}
	key := w[a].Flows[0].Key
	for _, order := range [][]model.Owner{{a, b}, {b, a}} {
		c := w.compiler()
		for _, o := range order {
			c.Update(nil, []model.Owner{o})
		}
		want := Flow{Flow: openflow.Flow{Key: key, Cookie: Cookie(a),
			Actions: openflow.ParseActions("conjunction(2,1/3),conjunction(5,2/2),conjunction(9,1/2)")}, Owner: a}
		if got := c.Desired().Flows[key]; got != want {
			t.Errorf("order %v: %+v\nwant %+v", order, got, want)
		}
		if len(c.Conflicts()) != 0 {
			t.Errorf("merged clauses count as a conflict: %v", c.Conflicts())
		}
		// Left out, the first takes just its own clauses with it.
		if d := c.Exclude(a); len(d.Set) != 1 || d.Set[0].Owner != b ||
			d.Set[0].Actions.String() != "conjunction(5,2/2),conjunction(9,1/2)" {
			t.Errorf("without the first: %+v", d)
		}
	}
}

// TestTooManyClauses: policies share the room of one flow, and a clause that is left out comes in when there is room.
func TestTooManyClauses(t *testing.T) {
	w := world{}
	var owners []model.Owner
	var key openflow.Key
	for i := range maxClauses + 5 {
		o := model.NetworkPolicy("ns", fmt.Sprintf("p%05d", i)).Owner()
		f := line(t, o, fmt.Sprintf("table=50,priority=100,ip,nw_src=10.0.0.1 actions=conjunction(%d,1/2)", i))
		w[o], key, owners = compiled{Flows: []Flow{f}}, f.Key, append(owners, o)
	}
	c := w.compiler()
	slices.Reverse(owners)
	c.Update(nil, owners)
	if got := slices.Collect(c.Desired().Flows[key].Actions.All()); len(got) != maxClauses {
		t.Errorf("%d clauses, want %d", len(got), maxClauses)
	}
	if len(c.Conflicts()) != 1 || len(c.Losers()) != 5 {
		t.Errorf("five clauses were left out: conflicts %v, losers %v", c.Conflicts(), c.Losers())
	}
	out := 0
	for _, o := range owners {
		if c.Losers()[o] == 0 && out < 5 {
			c.Exclude(o)
			out++
		}
	}
	if got := slices.Collect(c.Desired().Flows[key].Actions.All()); len(got) != maxClauses || len(c.Losers()) != 0 {
		t.Errorf("%d clauses, without %v: others do not take the place of those that are excluded", len(got), c.Losers())
	}
}

// TestGroupNumberCollision: the second of two that want one number gets the next, by the owners' order and not by
// arrival, and everything that leads to its group follows.
func TestGroupNumberCollision(t *testing.T) {
	// Two Services whose numbers are really the same: 30 bits, found by trying.
	seen := map[openflow.GroupID]model.Owner{}
	var first, second model.Owner
	for i := 0; second.Name == ""; i++ {
		o := model.ServiceOwner(fmt.Sprintf("ns/s%d", i))
		id := GroupID(o, "http")
		if other, ok := seen[id]; ok {
			first, second = other, o
		}
		seen[id] = o
	}
	if first.Compare(second) > 0 {
		first, second = second, first
	}
	id := GroupID(first, "http")
	w := world{first: service(t, first, id, 1), second: service(t, second, id, 2)}
	outer, err := openflow.NewGroup(id-1, openflow.DPHash(),
		[]openflow.Bucket{{ID: 1, Weight: 1, Actions: []ovs.Action{openflow.ToGroup(id)}}})
	if err != nil {
		t.Fatal(err)
	}
	both := w[second]
	both.Groups = append(both.Groups, Group{Group: outer, Owner: second, Table: ServiceLB})
	w[second] = both
	for _, order := range [][]model.Owner{{first, second}, {second, first}} {
		c := w.compiler()
		for _, o := range order {
			c.Update(nil, []model.Owner{o})
		}
		d := c.Desired()
		if len(d.Groups) != 3 || d.Groups[id].Owner != first || d.Groups[id+1].Owner != second ||
			!strings.Contains(d.Groups[id+1].String(), "weight:2") {
			t.Errorf("groups: %+v", d.Groups)
		}
		if !strings.HasSuffix(d.Groups[id-1].String(), fmt.Sprintf("actions=group:%d", id+1)) {
			t.Errorf("the group that leads to the second's: %s", d.Groups[id-1])
		}
		if f := d.Flows[w[second].Flows[0].Key]; f.Actions.String() != fmt.Sprintf("group:%d", id+1) {
			t.Errorf("the second's flow is %s", f)
		}
		// When the first is gone, the second gets what it wants; left out by the switch, the first keeps its number.
		if delta := c.Exclude(first); len(delta.SetGroups) != 0 || len(delta.DeleteGroups) != 1 {
			t.Errorf("leaving the first out: %+v", delta)
		}
		gone := world{second: w[second]}
		c.compile = gone.compiler().compile
		c.Update(nil, []model.Owner{first})
		if got, want := c.Desired().String(), gone.full(t, nil).String(); got != want {
			t.Errorf("after the first is gone:\n%s\nwant:\n%s", got, want)
		}
	}
}

func TestGroupID(t *testing.T) {
	o := model.ServiceOwner("shop/web")
	if got := GroupID(o, "http/IPv4/cluster"); got != 0x60bd8023 {
		t.Errorf("number %#x; it must never change", got)
	}
	if GroupID(o, "a") == GroupID(o, "b") || GroupID(model.NetworkPolicy("shop", "web").Owner(), "a") == GroupID(o, "a") ||
		GroupID(model.ServiceOwner("shop/we"), "ba") == GroupID(model.ServiceOwner("shop/web"), "a") {
		t.Error("numbers do not tell parts, kinds or names apart")
	}
	for _, part := range []string{"a", "b", "c", "d"} {
		if !OurGroup(GroupID(o, part)) {
			t.Errorf("%#x is not ours", GroupID(o, part))
		}
	}
	if OurGroup(5) || OurGroup(0xffffff00) || !OurGroup(nextGroupID(0x7fffffff)) {
		t.Error("ours and others' are not told apart")
	}
}

// TestBuilderGroup: two parts of one owner never share a number, and what cannot be is an error.
func TestBuilderGroup(t *testing.T) {
	b := &builder{owner: model.ServiceOwner("ns/a")}
	to := []openflow.Bucket{{ID: 1, Weight: 1, Actions: []ovs.Action{openflow.CT{Commit: true, Table: PolicyEntry,
		Zone: Zone}.Action()}}}
	if one, other := b.group("http", openflow.DPHash(), to), b.group("http", openflow.DPHash(), to); one == other ||
		b.err != nil {
		t.Errorf("numbers %d and %d, %v", one, other, b.err)
	}
	b.group("http", openflow.Hash(), to)
	if b.err == nil {
		t.Error("a group that cannot be was accepted")
	}
	back, err := openflow.NewGroup(1, openflow.DPHash(),
		[]openflow.Bucket{{ID: 1, Weight: 1, Actions: []ovs.Action{openflow.Resubmit(Classifier)}}})
	if err != nil {
		t.Fatal(err)
	}
	w := world{b.owner: {Groups: []Group{{Group: back, Owner: b.owner, Table: ServiceLB}}}}
	if _, failed := w.compiler().Update(nil, []model.Owner{b.owner}); len(failed) != 1 {
		t.Error("a group that leads back was accepted")
	}
}

// TestDiffOfGroups: what is right stays, what is stale goes, what others have is left alone, and so are learned flows.
func TestDiffOfGroups(t *testing.T) {
	o, gone := model.ServiceOwner("ns/a"), model.ServiceOwner("ns/gone")
	id, stale := GroupID(o, "x"), service(t, gone, GroupID(gone, "x"), 1)
	w := world{o: service(t, o, id, 3)}
	learned := line(t, o,
		"table=35,priority=100,tcp,nw_src=10.244.0.2,nw_dst=10.96.0.1,tp_dst=80 actions=load:0x5->NXM_NX_REG4[]")
	actual := openflow.Contents{
		Flows:  []openflow.Entry{{Flow: w[o].Flows[0].Flow}, {Flow: stale.Flows[0].Flow}, {Flow: learned.Flow}},
		Groups: []openflow.Group{w[o].Groups[0].Group, stale.Groups[0].Group, parseGroup(t, "group_id=5,type=all")},
	}
	d := Diff(actual, w.full(t, nil))
	if len(d.Set)+len(d.SetGroups) != 0 || len(d.Delete) != 1 || d.Delete[0].Flow != stale.Flows[0].Flow ||
		len(d.DeleteGroups) != 1 || d.DeleteGroups[0].Group != stale.Groups[0].Group {
		t.Errorf("delta = %+v; want just the stale flow and group deleted", d)
	}
	actual.Groups[0] = parseGroup(t, actual.Groups[0].String()+",bucket=bucket_id:9,actions=drop")
	if d := Diff(actual, w.full(t, nil)); len(d.SetGroups) != 1 || d.SetGroups[0].Group != w[o].Groups[0].Group {
		t.Errorf("delta = %+v; want the changed group set", d)
	}
}

func parseGroup(t *testing.T, line string) openflow.Group {
	t.Helper()
	g, err := openflow.ParseGroup(line)
	if err != nil {
		t.Fatal(err)
	}
	return g
}
