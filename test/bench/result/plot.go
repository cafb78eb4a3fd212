package result

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// The layout of a plot, in pixels.
const (
	plotWidth  = 860
	barsFrom   = 170
	barsTo     = 680 // the longest bar or whisker ends here; its value stands behind it
	rowHeight  = 22
	barHeight  = 14
	headHeight = 34
	caseGap    = 12
)

// colors are the systems', chosen to be told apart with any color vision (Okabe and Ito).
var colors = map[string]string{
	Weft: "#0072b2", OVS: "#e69f00", OVSCt: "#d55e00", Linux: "#009e73", Bridge: "#cc79a7", Raw: "#999999",
	WeftAgainst: "#56b4e9",
}

// Plot is a metric of a run as SVG: a bar for each median and a line from the lowest to the highest round. It is empty
// when the run has no such metric.
func (r *Run) Plot(metric string) string {
	m, _ := metricNamed(metric)
	var cases []string
	highest := 0.0
	for _, s := range r.Series {
		if s.Metric == metric {
			highest = max(highest, s.Summary().Max)
			if !slices.Contains(cases, s.Case) {
				cases = append(cases, s.Case)
			}
		}
	}
	if highest == 0 {
		return ""
	}
	var body strings.Builder
	text := func(x, y int, class, s string) {
		fmt.Fprintf(&body, "<text x=\"%d\" y=\"%d\" class=\"%s\">%s</text>\n", x, y, class, html.EscapeString(s))
	}
	better := "longer is better"
	if !m.Higher {
		better = "shorter is better"
	}
	text(12, 22, "title", fmt.Sprintf("%s (%s; %s)", m.Title, m.Unit, better))
	at := func(v float64) int { return barsFrom + int(math.Round(v/highest*(barsTo-barsFrom))) }
	y := headHeight
	for _, kase := range cases {
		text(12, y+15, "case", kase)
		y += rowHeight
		for _, s := range r.Series {
			if s.Metric != metric || s.Case != kase {
				continue
			}
			sum := s.Summary()
			middle := y + rowHeight/2
			text(24, middle+4, "system", s.System)
			fmt.Fprintf(&body, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\"/>\n", barsFrom,
				middle-barHeight/2, max(1, at(sum.Median)-barsFrom), barHeight, colors[s.System])
			fmt.Fprintf(&body, "<path d=\"M%d %dH%dM%[1]d %[4]dv8M%[3]d %[4]dv8\" class=\"spread\"/>\n", at(sum.Min), middle,
				at(sum.Max), middle-4)
			text(max(at(sum.Median), at(sum.Max))+8, middle+4, "value", Number(sum.Median))
			y += rowHeight
		}
		y += caseGap
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d">
<title>%[3]s</title>
<style>
text { font: 12px sans-serif; fill: #222; } .title { font-weight: bold; font-size: 14px; } .case { font-weight: bold; }
.spread { stroke: #222; fill: none; }
</style>
<rect width="%[1]d" height="%[2]d" fill="#fff"/>
%[4]s</svg>
`, plotWidth, y, html.EscapeString(m.Title), body.String())
}
