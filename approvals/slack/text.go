package slack

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	slackgo "github.com/slack-go/slack"

	"countersign/action"
	"countersign/approvals"
)

// short makes what somebody else wrote visible in one line, and cuts it.
func short(s string, most int) string {
	all := approvals.Visible(s)
	if size(all) <= most {
		return all
	}
	return clip(all, most) + fmt.Sprintf(" (%d characters)", size(all))
}

// clip cuts a text that is visible already.
func clip(s string, most int) string {
	if size(s) <= most {
		return s
	}
	n := 1 // for the ellipsis
	for i, r := range s {
		if n += utf16.RuneLen(r); n > most {
			return s[:i] + "…"
		}
	}
	return s
}

// fold joins lines and keeps what fits, saying how many are left out.
func fold(lines []string, most int) string {
	for i, line := range lines {
		if most -= size(line) + 1; most < 0 {
			kept := append(slices.Clone(lines[:i]), clip(line, max(most+size(line), 1)))
			if more := len(lines) - i - 1; more > 0 {
				kept = append(kept, "… and "+count(more, "more line", "more lines"))
			}
			return strings.Join(kept, "\n")
		}
	}
	return strings.Join(lines, "\n")
}

// wrap breaks lines that are longer than so many characters, after a space or a
// slash where there is one, so that what comes after the break cannot pass for a line of its
// own. Nothing is left out.
func wrap(text string, width int) []string {
	var out []string
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		rest, prefix := []rune(line), ""
		for room := width; ; room = width - len([]rune(broken)) {
			// Letters that take two columns leave room for half as many.
			if room = columns(rest, room); len(rest) <= room {
				break
			}
			at := room
			for i := range room / 3 {
				if r := rest[room-1-i]; r == ' ' || r == '/' && at == room {
					at = room - i
					if r == ' ' {
						break
					}
				}
			}
			out = append(out, prefix+string(rest[:at]))
			rest, prefix = rest[at:], broken
		}
		out = append(out, prefix+string(rest))
	}
	return out
}

// columns is how many of the first characters fit into so many columns.
func columns(text []rune, room int) int {
	for i, r := range text {
		room--
		if wide(r) {
			room--
		}
		if room < 0 {
			return i
		}
	}
	return len(text)
}

// wide are characters that take two columns (Unicode, East Asian Width, W and F).
func wide(r rune) bool {
	return r >= 0x1100 && (unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana, unicode.Bopomofo, unicode.Yi) ||
		r >= 0x3000 && r <= 0x303f || r >= 0xff01 && r <= 0xff60 || r >= 0x1f300 && r <= 0x1faff)
}

// escape makes a text inert where Slack reads it as mrkdwn.
func escape(s string) string { return escaper.Replace(s) }

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

func size(s string) int {
	n := 0
	for _, r := range s {
		n += utf16.RuneLen(r)
	}
	return n
}

// spent counts all texts of blocks.
func spent(blocks []slackgo.Block) int {
	data, err := json.Marshal(blocks)
	if err != nil {
		return messageRoom + 1
	}
	var all any
	if json.Unmarshal(data, &all) != nil {
		return messageRoom + 1
	}
	return texts(all)
}

func texts(v any) int {
	n := 0
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			n += texts(item)
		}
	case map[string]any:
		for key, value := range v {
			if text, ok := value.(string); ok && key == "text" {
				n += size(text)
			} else {
				n += texts(value)
			}
		}
	}
	return n
}

// each is what the plan's requests have, each once.
func each(op approvals.Operation, of func(action.Action) string) []string {
	var out []string
	for _, a := range op.Plan.Actions {
		if s := of(a); s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// many lists names, at most so many.
func many(names []string, most int) string {
	var out []string
	for i, name := range names {
		if i == most {
			out = append(out, fmt.Sprintf("and %d more", len(names)-i))
			break
		}
		out = append(out, short(name, 100))
	}
	return strings.Join(out, ", ")
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func clock(t time.Time) string { return t.UTC().Format("15:04 UTC on 2 January 2006") }
