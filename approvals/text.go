package approvals

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"countersign/action"
)

// Visible makes a text that somebody else wrote safe to show: what is not seen
// (control and zero-width characters), what rearranges what is seen (bidirectional
// overrides, letters that are written from right to left), what is drawn over it
// (marks upon Latin letters, and heaps of marks) and letters that pass for others
// (Cyrillic or Greek ones within a Latin word) become \u{XXXX}. Line breaks become
// visible too; a caller that wants several lines splits first.
func Visible(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	var b strings.Builder
	runes := []rune(s)
	for i := 0; i < len(runes); {
		end := i + 1
		for inWord(runes[i]) && end < len(runes) && inWord(runes[end]) {
			end++
		}
		writeWord(&b, runes[i:end])
		i = end
	}
	return b.String()
}

func inWord(r rune) bool {
	if r < unicode.MaxASCII {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
	}
	return unicode.IsLetter(r) || unicode.IsMark(r)
}

// plain are the characters of ASCII that are seen.
func plain(r rune) bool { return ' ' <= r && r < unicode.MaxASCII }

// writeWord writes letters that stand together, or one other character.
func writeWord(b *strings.Builder, word []rune) {
	if !slices.ContainsFunc(word, func(r rune) bool { return !plain(r) }) {
		for _, r := range word {
			b.WriteByte(byte(r))
		}
		return
	}
	latin := slices.ContainsFunc(word, func(r rune) bool { return unicode.Is(unicode.Latin, r) })
	marks, upon := 0, rune(0)
	for _, r := range word {
		show := !hidden(r) && !unicode.In(r, rightToLeft...) && (!latin || !unicode.In(r, likeLatin...))
		if unicode.In(r, unicode.Mn, unicode.Me) {
			marks++
			show = show && marks <= 2 && unicode.IsLetter(upon) && !unicode.Is(unicode.Latin, upon)
		} else {
			marks, upon = 0, r
		}
		if show {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(b, `\u{%X}`, r)
		}
	}
}

var (
	rightToLeft = []*unicode.RangeTable{unicode.Hebrew, unicode.Arabic, unicode.Syriac, unicode.Thaana, unicode.Nko, unicode.Samaritan, unicode.Mandaic, unicode.Adlam}
	likeLatin   = []*unicode.RangeTable{unicode.Cyrillic, unicode.Greek, unicode.Armenian, unicode.Cherokee, unicode.Coptic}
)

func hidden(r rune) bool {
	if r < unicode.MaxASCII {
		return r < ' '
	}
	return !unicode.IsPrint(r) || unicode.In(r, invisible...) || r == blank
}

// invisible are characters that Unicode counts as letters, marks or symbols but
// that show nothing, such as U+3164 and variation selectors; blank is one more.
var invisible = []*unicode.RangeTable{unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector}

const blank = '\u2800' // an empty Braille pattern

// Text is what an approver is shown of an operation: who asks for what, what
// the API server says would change, and until when it can be decided.
func Text(op Operation) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s %s\n", label, Visible(fmt.Sprintf(format, args...)))
	}
	line("Operation", "%s", op.ID)
	line("State", "%s", op.State)
	line("Asked by", "%s (%s)", op.Principal, op.Principal.Issuer)
	line("Tool", "%s", op.Tool)
	if op.AgentReason != "" {
		line("Agent says", "%q", op.AgentReason)
	}
	if len(op.Rules) > 0 {
		line("Rules", "%s", strings.Join(op.Rules, ", "))
	}
	if op.Reason != "" {
		line("Reason", "%s", op.Reason)
	}
	if len(op.Plan.Actions) > 1 {
		line("Objects", "%d", len(op.Plan.Actions))
	}
	if len(op.Risks) > 0 {
		line("Risks", "%s", strings.Join(op.Risks, ", "))
	}
	look, total := notes(op)
	for _, l := range look {
		line("Look at", "%s", l)
	}
	if total != "" {
		line("Changes", "%s", total)
	}
	for _, r := range op.Requirements {
		line("Needs", "%s", r)
	}
	for _, v := range op.Votes {
		word := "rejected"
		if v.Approve {
			word = "approved"
		}
		if v.Grant {
			word = "this kind approved"
		}
		line("Vote", "%s by %s (%s) at %s %s", word, v.Person.Name, v.Person.ID, v.Time.UTC().Format(time.RFC3339), v.Reason)
	}
	if op.State == PendingApproval {
		line("Expires", "%s", op.Expires.UTC().Format(time.RFC3339))
	}
	if op.Supersedes != "" {
		line("Asks again", "for %s, which no longer was what would happen", op.Supersedes)
	}
	for _, d := range op.Drift {
		line("Differs", "%s", d)
	}
	if op.GrantFor > 0 && op.State == PendingApproval {
		for _, k := range op.Kinds() {
			line("Kind", "%s; it can be approved for %s (approvals approve --kind)", k, Duration(op.GrantFor))
		}
	}
	if op.Gave != "" {
		line("Gave", "grant %s for this kind until %s; countersign grants revoke %[1]s takes it back", op.Gave, op.GaveUntil().UTC().Format(time.RFC3339))
	}
	if op.Grant != "" {
		line("Ran under", "grant %s", op.Grant)
	}
	if op.SupersededBy != "" {
		line("Asked as", "%s", op.SupersededBy)
	}
	if op.Result != "" && !op.Plan.ReadOnly() && !op.Plan.Runs() {
		line("Result", "%s", strings.ReplaceAll(op.Result, "\n", "; "))
	}
	line("Plan", "%s", op.PlanDigest)
	if op.PreviewDigest != "" {
		line("Diff", "%s", op.PreviewDigest)
	}
	for i := range op.Plan.Actions {
		b.WriteString("\n" + ActionText(op, i))
	}
	return b.String()
}

// ActionText is what an approver is shown of one Action of the plan: the request
// and all that it would change.
func ActionText(op Operation, i int) string {
	a := op.Plan.Actions[i]
	text := Visible(fmt.Sprintf("%d. %s, cluster %s%s", i+1, a, a.Cluster, flags(a))) + "\n"
	if i < len(op.Diffs) {
		text += DiffText(op.Diffs[i])
	}
	return text
}

// Drifted says how what would change now differs from what was asked before, one
// field a line.
func Drifted(before, now Operation) []string {
	var out []string
	for i, a := range now.Plan.Actions {
		if i < len(before.UIDs) && i < len(now.UIDs) && before.UIDs[i] != now.UIDs[i] {
			out = append(out, a.String()+": it is about another object of this name than before")
		}
		was, is := changed(before, i), changed(now, i)
		both := maps.Clone(was)
		maps.Copy(both, is)
		for _, path := range slices.Sorted(maps.Keys(both)) {
			w, n := was[path], is[path]
			switch {
			case w.whole == n.whole:
			case w.brief == n.brief:
				out = append(out, fmt.Sprintf("%s %s: differs behind what is shown here: %s", a, path, n.brief))
			default:
				out = append(out, fmt.Sprintf("%s %s: was %s, now %s", a, path, cmp.Or(w.brief, "no change"), cmp.Or(n.brief, "no change")))
			}
		}
	}
	const most = 20
	if more := len(out) - most; more > 0 {
		out = append(out[:most], fmt.Sprintf("and %d more", more))
	}
	return out
}

// written is one change as text, and cut to fit in a line.
type written struct{ whole, brief string }

// changed writes what would change in one Action, by path.
func changed(op Operation, i int) map[string]written {
	out := map[string]written{}
	if i >= len(op.Diffs) {
		return out
	}
	for _, c := range op.Diffs[i] {
		before, after := inLine(c.Old), inLine(c.New)
		switch c.Op {
		case "add":
			out[c.Path] = written{"+ " + after.whole, "+ " + after.brief}
		case "remove":
			out[c.Path] = written{"- " + before.whole, "- " + before.brief}
		default:
			out[c.Path] = written{before.whole + " -> " + after.whole, before.brief + " -> " + after.brief}
		}
	}
	return out
}

func inLine(v any) written {
	data, _ := json.Marshal(v)
	text := []rune(string(data))
	if len(text) > 80 {
		text = append(text[:80:80], []rune("...")...)
	}
	return written{string(data), string(text)}
}

// Duration writes a length of time as people say it.
func Duration(d time.Duration) string {
	switch {
	case d >= time.Hour && d%time.Hour == 0:
		return count(int(d/time.Hour), "hour", "hours")
	case d >= time.Minute && d%time.Minute == 0:
		return count(int(d/time.Minute), "minute", "minutes")
	case d < time.Minute:
		return count(int(d/time.Second), "second", "seconds")
	}
	return d.String()
}

// flags names the options that make a request more than it looks.
func flags(a action.Action) string {
	var out string
	if a.Options.Force {
		out += ", taking over fields of other managers"
	}
	if p := a.Options.PropagationPolicy; p == "Orphan" {
		out += ", leaving its dependents behind"
	}
	if s := a.Options.GracePeriodSeconds; s != nil {
		out += fmt.Sprintf(", with %d seconds of grace", *s)
	}
	return out
}

// DiffText writes changes for a person to read: one field a line, its old value
// behind "-", its new one behind "+".
func DiffText(diff []action.Change) string {
	if len(diff) == 0 {
		return "   nothing would change\n"
	}
	var b strings.Builder
	for _, c := range diff {
		path := c.Path
		switch {
		case path == "" && c.Op == "add":
			path = "(a new object)"
		case path == "" && c.Op == "remove":
			path = "(the whole object)"
		}
		fmt.Fprintf(&b, "   %s\n", Visible(path))
		if c.Op != "add" {
			writeValue(&b, '-', c.Old)
		}
		if c.Op != "remove" {
			writeValue(&b, '+', c.New)
		}
	}
	return b.String()
}

func writeValue(b *strings.Builder, sign rune, v any) {
	var buf strings.Builder
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if enc.Encode(v) != nil {
		buf.WriteString("(unreadable)")
	}
	for line := range strings.Lines(buf.String()) {
		fmt.Fprintf(b, "   %c %s\n", sign, Visible(strings.TrimSuffix(line, "\n")))
	}
}
