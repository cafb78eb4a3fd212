// Package terminal is what Weft's command line programs have in common: the output formats of -o, colors, and lists in
// tables.
package terminal

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/term"
	"sigs.k8s.io/yaml"
)

// Is reports whether w is a terminal.
func Is(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// HasColors reports whether text to w may have colors: w is a terminal that knows them, and the user has not set
// NO_COLOR.
func HasColors(w io.Writer) bool {
	// The console of Windows shows escapes as text unless a program switches them on; Windows Terminal needs no switch.
	return Is(w) && os.Getenv("NO_COLOR") == "" && (runtime.GOOS != "windows" || os.Getenv("WT_SESSION") != "")
}

// Color is how a terminal shows text (ECMA-48, SGR).
type Color string

// The colors.
const (
	Bold  Color = "1"
	Faint Color = "2"
	Red   Color = "31"
	Green Color = "32"
	Cyan  Color = "36"
)

// Paint returns text in a color, or as it is where w has no colors. In a table it is only for whole columns at the end
// of a line: tabwriter counts escapes as text.
func Paint(w io.Writer, c Color, text string) string {
	if !HasColors(w) {
		return text
	}
	return Escape(c, text)
}

// Escape returns text in a color for a terminal.
func Escape(c Color, text string) string { return "\x1b[" + string(c) + "m" + text + "\x1b[0m" }

// Format is a value of -o.
type Format string

// The formats. Every command has Table, JSON and YAML.
const (
	Table Format = "table"
	Wide  Format = "wide"
	JSON  Format = "json"
	YAML  Format = "yaml"
	Name  Format = "name"
)

// Check rejects a format that is neither one that every command has nor one of more.
func (f Format) Check(more ...Format) error {
	known := slices.Concat([]Format{Table, JSON, YAML}, more)
	if !slices.Contains(known, f) {
		texts := make([]string, len(known))
		for i, k := range known {
			texts[i] = string(k)
		}
		return fmt.Errorf("-o %s is not known; allowed: %s", f, strings.Join(texts, ", "))
	}
	return nil
}

// Print writes v as JSON or YAML, or as the table that show writes.
func (f Format) Print(w io.Writer, v any, show func(io.Writer) error) error {
	switch f {
	case JSON:
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	case YAML:
		text, err := yaml.Marshal(v) // by the keys and rules of JSON
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	return show(w)
}

// Join lists values for a column of a table; "-" when there are none.
func Join[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, v := range list {
		texts[i] = v.String()
	}
	return OrNone(strings.Join(texts, ","))
}

// OrNone is text for a column of a table; "-" when it is empty.
func OrNone(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// Count is a number of things, whose noun is given in the singular: "1 node", "2 nodes", "0 policies".
func Count(n int, noun string) string {
	return fmt.Sprintf("%d %s", n, plural(n, noun))
}

// CountOf is a part of a number of things: "1 of 1 node", "0 of 3 nodes".
func CountOf(part, n int, noun string) string {
	return fmt.Sprintf("%d of %s", part, Count(n, noun))
}

func plural(n int, noun string) string {
	switch consonantY, isY := strings.CutSuffix(noun, "y"); {
	case n == 1:
		return noun
	case isY && consonantY != "" && !strings.ContainsAny(consonantY[len(consonantY)-1:], "aeiou"):
		return consonantY + "ies"
	case strings.HasSuffix(noun, "s"):
		return noun + "es"
	}
	return noun + "s"
}
