package host

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

const tableName = "weft"

// nat keeps the nftables table right. nft does not give a rule back as it was written, so rules are compared by their
// comments, which hold a hash of the rule, and the kernel's own form of them by a hash that the table holds (see
// layout).
//
// It remembers what it wrote: to list 10,000 elements takes nft a hundred times longer than to write one.
type nat struct {
	nft         knftables.Interface
	generations generations
	// layout reads the kernel's form of the table; nil with knftables' fake, which has none.
	layout func() (layout, error)
	// rules and elements (of each set, in order) are in the kernel by our hand; known is false when that is not sure.
	known    bool
	rules    []*knftables.Rule
	elements [][]element
	// gone are translations that the table made until the last write.
	gone goneTranslations
}

// sync changes elements or, when anything else differs, makes the table anew. Both are one transaction; connections
// keep the translation that they have. With compare, or when it has to, it looks at the kernel first.
func (n *nat) sync(ctx context.Context, c *changes, d Desired, compare bool) error {
	wantRules, want := rules(d), make([][]element, len(sets))
	for i, s := range sets {
		want[i] = s.elements(d, s.is4)
	}
	if n.known && !compare && slices.EqualFunc(n.rules, wantRules, sameRule) {
		if err := n.writeDifference(ctx, c, want); err == nil {
			return nil
		}
		// Somebody else was at our table. A look at it tells what is to do.
	}
	n.known = false
	have, err := n.haveRules(ctx)
	if err != nil {
		return err
	}
	right := slices.EqualFunc(have, byChain(wantRules), sameRule)
	if right {
		if right, err = n.untouched(); err != nil {
			return err
		}
	}
	if right {
		if right, err = n.look(ctx); err != nil {
			return err
		}
	}
	if right {
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

// run runs a transaction.
func (n *nat) run(ctx context.Context, tx *knftables.Transaction) error {
	if n.layout == nil {
		return n.nft.Run(ctx, tx)
	}
	return n.generations.run(func() error { return n.nft.Run(ctx, tx) })
}

// untouched says whether chains, sets and rules are what was written, by this agent or one before it.
func (n *nat) untouched() (bool, error) {
	if n.layout == nil {
		return true, nil
	}
	now, err := n.layout()
	return err == nil && !now.disabled && now.sum == now.written, err
}

// noteLayout leaves the hash of what has just been written in the table.
func (n *nat) noteLayout(ctx context.Context) error {
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
		return fmt.Errorf("note what nftables table %s holds: %w", tableName, err)
	}
	return nil
}

// haveRules are the table's, by chain; none when there is no table.
func (n *nat) haveRules(ctx context.Context) ([]*knftables.Rule, error) {
	have, err := n.nft.ListRules(ctx, "")
	if err != nil && !knftables.IsNotFound(err) {
		return nil, fmt.Errorf("list rules of nftables table %s: %w", tableName, err)
	}
	return byChain(have), nil
}

// byChain sorts rules as nft does not: it lists whole chains in any order.
func byChain(rules []*knftables.Rule) []*knftables.Rule {
	return slices.SortedStableFunc(slices.Values(rules), func(a, b *knftables.Rule) int { return strings.Compare(a.Chain, b.Chain) })
}

func sameRule(a, b *knftables.Rule) bool {
	return a.Chain == b.Chain && a.Comment != nil && b.Comment != nil && *a.Comment == *b.Comment
}

// look reads the elements. It reports false when a set is missing or holds what we never put there.
func (n *nat) look(ctx context.Context) (bool, error) {
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

// writeDifference adds and removes single elements, so that the sets are what they shall be if they were what n says.
func (n *nat) writeDifference(ctx context.Context, c *changes, want [][]element) error {
	tx := n.nft.NewTransaction()
	var done changes
	for i, s := range sets {
		stale, missing := difference(n.elements[i], want[i])
		// A range may take the place of others, and a key may get another value.
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
	n.replace(want)
	return nil
}

// replace takes note of what the sets hold now, and of translations that are gone with what they held. What that was
// is not known when an agent that has just started finds rules that are not its own.
func (n *nat) replace(elements [][]element) {
	if n.elements != nil {
		for i, s := range sets {
			n.gone.add(s.gone(difference(n.elements[i], elements[i])))
		}
	}
	n.elements = elements
}

// difference compares two lists that are in order.
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
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("Weft pod network; made anew when changed")})
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
	n.replace(want)
	if slices.ContainsFunc(have, toWorld) && !slices.ContainsFunc(rules, toWorld) {
		n.gone.direct = append(n.gone.direct, everywhere...)
	}
	return n.noteLayout(ctx)
}
