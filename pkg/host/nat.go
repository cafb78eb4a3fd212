package host

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

const tableName = "weft"

// nat writes the nftables table. nft prints a rule in another form than it was written, so rules are compared by their
// comments, which hold a hash of the rule, and the kernel's form of the table by a hash that is stored in the table
// (see layout).
//
// It remembers what it wrote: listing 10,000 elements takes nft a hundred times longer than writing one.
type nat struct {
	nft         knftables.Interface
	generations generations
	// layout reads the kernel's form of the table; nil with knftables' fake, which has none.
	layout func() (layout, error)
	// rules and elements (of each set, sorted) are installed; known is false when that is uncertain.
	known    bool
	rules    []*knftables.Rule
	elements [][]element
	// removed are the translations that writes have removed since the last Sync took them.
	removed removedTranslations
}

// sync writes elements or, when anything else differs, the whole table. Either is one transaction; connections keep
// their NAT. With compare, or when its memory is not reliable, it reads the kernel's state first.
func (n *nat) sync(ctx context.Context, c *changes, d Desired, compare bool) error {
	wantRules, want := rules(d), make([][]element, len(sets))
	for i, s := range sets {
		want[i] = s.elements(d, s.is4)
	}
	if n.known && !compare && slices.EqualFunc(n.rules, wantRules, sameRule) {
		if err := n.writeDifference(ctx, c, want); err == nil {
			return nil
		}
		// Another program changed the table, so compare with the kernel.
	}
	n.known = false
	have, err := n.listRules(ctx)
	if err != nil {
		return err
	}
	inSync := slices.EqualFunc(have, byChain(wantRules), sameRule)
	if inSync {
		if inSync, err = n.layoutUnchanged(); err != nil {
			return err
		}
	}
	if inSync {
		if inSync, err = n.readElements(ctx); err != nil {
			return err
		}
	}
	if inSync {
		err = n.writeDifference(ctx, c, want)
	} else {
		err = n.writeTable(ctx, c, have, wantRules, want)
	}
	if err != nil {
		return err
	}
	n.known, n.rules = true, wantRules
	return nil
}

// run runs a transaction and records its generation.
func (n *nat) run(ctx context.Context, tx *knftables.Transaction) error {
	if n.layout == nil {
		return n.nft.Run(ctx, tx)
	}
	return n.generations.run(func() error { return n.nft.Run(ctx, tx) })
}

// layoutUnchanged reports whether chains, sets and rules are as written by this agent or an earlier one.
func (n *nat) layoutUnchanged() (bool, error) {
	if n.layout == nil {
		return true, nil
	}
	now, err := n.layout()
	return err == nil && !now.disabled && now.sum == now.written, err
}

// recordLayout stores the hash of the written table in the table.
func (n *nat) recordLayout(ctx context.Context) error {
	if n.layout == nil {
		return nil
	}
	now, err := n.layout()
	if err != nil {
		return err
	}
	tx := n.nft.NewTransaction()
	tx.Add(&knftables.Chain{Name: writtenPrefix + now.sum})
	if err := n.run(ctx, tx); err != nil {
		return fmt.Errorf("record the hash of nftables table %s: %w", tableName, err)
	}
	return nil
}

// listRules are the table's rules, by chain; none when the table does not exist.
func (n *nat) listRules(ctx context.Context) ([]*knftables.Rule, error) {
	have, err := n.nft.ListRules(ctx, "")
	if err != nil && !knftables.IsNotFound(err) {
		return nil, fmt.Errorf("list rules of nftables table %s: %w", tableName, err)
	}
	return byChain(have), nil
}

// byChain sorts rules by chain, because nft lists chains in any order.
func byChain(rules []*knftables.Rule) []*knftables.Rule {
	return slices.SortedStableFunc(slices.Values(rules),
		func(a, b *knftables.Rule) int { return strings.Compare(a.Chain, b.Chain) })
}

func sameRule(a, b *knftables.Rule) bool {
	return a.Chain == b.Chain && a.Comment != nil && b.Comment != nil && *a.Comment == *b.Comment
}

// readElements reads the elements of all sets. It returns false when a set is missing or has elements that Weft never
// writes.
func (n *nat) readElements(ctx context.Context) (bool, error) {
	n.elements = make([][]element, len(sets))
	for i, s := range sets {
		have, err := n.nft.ListElements(ctx, s.kind(), s.name)
		if knftables.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("list nftables %s %s %s: %w", s.kind(), tableName, s.name, err)
		}
		list := make([]element, len(have))
		for j, e := range have {
			var ok bool
			if list[j], ok = s.parse(e); !ok {
				return false, nil
			}
		}
		slices.SortFunc(list, compareElements)
		n.elements[i] = list
	}
	return true, nil
}

// writeDifference adds and deletes single elements, from the remembered elements to the desired ones.
func (n *nat) writeDifference(ctx context.Context, c *changes, want [][]element) error {
	tx := n.nft.NewTransaction()
	var done changes
	for i, s := range sets {
		stale, missing := difference(n.elements[i], want[i])
		// Delete first: a range may replace others, and a key may get another value.
		for _, e := range stale {
			tx.Delete(s.element(e))
			done.add("nftables %s %s: %s removed", s.kind(), s.name, e)
		}
		for _, e := range missing {
			tx.Add(s.element(e))
			done.add("nftables %s %s: %s added", s.kind(), s.name, e)
		}
	}
	if tx.NumOperations() > 0 {
		if err := n.run(ctx, tx); err != nil {
			return fmt.Errorf("change nftables table %s: %w", tableName, err)
		}
	}
	c.list = append(c.list, done.list...)
	n.setElements(want)
	return nil
}

// setElements records the elements of the sets, and the translations that the deleted elements made. These are unknown
// when a new agent finds another version's rules.
func (n *nat) setElements(elements [][]element) {
	if n.elements != nil {
		for i, s := range sets {
			n.removed.add(s.removed(difference(n.elements[i], elements[i])))
		}
	}
	n.elements = elements
}

// difference compares two sorted lists.
func difference(have, want []element) (stale, missing []element) {
	for len(have) > 0 && len(want) > 0 {
		switch order := compareElements(have[0], want[0]); {
		case order == 0:
			have, want = have[1:], want[1:]
		case order < 0:
			stale, have = append(stale, have[0]), have[1:]
		default:
			missing, want = append(missing, want[0]), want[1:]
		}
	}
	return append(stale, have...), append(missing, want...)
}

func (n *nat) writeTable(ctx context.Context, c *changes, have, rules []*knftables.Rule, want [][]element) error {
	tx := n.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("Weft pod network; rewritten when changed")})
	for i, s := range sets {
		tx.Add(s.object())
		for _, e := range want[i] {
			tx.Add(s.element(e))
		}
	}
	for _, chain := range chains {
		tx.Add(&chain)
	}
	for _, r := range rules {
		tx.Add(r)
	}
	if err := n.run(ctx, tx); err != nil {
		return fmt.Errorf("write nftables table %s: %w", tableName, err)
	}
	c.add("nftables table %s written", tableName)
	n.setElements(want)
	if slices.ContainsFunc(have, toWorld) && !slices.ContainsFunc(rules, toWorld) {
		n.removed.direct = append(n.removed.direct, everywhere...)
	}
	return n.recordLayout(ctx)
}
