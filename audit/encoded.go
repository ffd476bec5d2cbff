package audit

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

// deepest is how much base64 within base64 is looked into.
const deepest = 2

// shortestRun is the length of base64 that is worth decoding.
const shortestRun = 20

// run is one piece of base64 text.
type run struct {
	span
	alone bool // it is all of its line
	joint bool // it continues the run before, on the next line
}

// encoded finds base64 of texts with credentials in them, and lines that can
// only be the middle of a PEM file. Runs do not overlap, and what they are
// decoded to is looked through once, if it is text: all depths together are
// less than three times the text.
func (f *finder) encoded(depth int) {
	var runs []run
	flush := func() {
		if len(runs) > 0 {
			f.block(runs, depth)
			runs = runs[:0]
		}
	}
	s := f.text
	for i := 0; i < len(s); {
		if !isBase64[s[i]] {
			i++
			continue
		}
		r := run{span: span{i, i}}
		for i < len(s) && isBase64[s[i]] {
			i++
		}
		if r.from > 0 && s[r.from-1] == '\\' && strings.IndexByte("nrt", s[r.from]) >= 0 {
			r.from++ // an escaped line break
		}
		for n := 0; n < 2 && i < len(s) && s[i] == '='; n++ {
			i++
		}
		if r.to = i; r.to-r.from < shortestRun && len(runs) == 0 {
			continue
		}
		r.alone = lineBegins(s, r.from) && lineEnds(s, r.to)
		if len(runs) > 0 {
			last := runs[len(runs)-1]
			gap := breakAt(s, last.to)
			r.joint = gap > 0 && last.to+gap == r.from && r.alone && last.to-last.from >= shortestRun && (r.to-r.from >= shortestRun || isTail(s[r.from:r.to]))
			if !r.joint {
				flush()
				if r.to-r.from < shortestRun {
					continue
				}
			}
		}
		runs = append(runs, r)
	}
	flush()
}

// block looks at runs on lines that follow each other.
func (f *finder) block(runs []run, depth int) {
	all := span{runs[0].from, runs[len(runs)-1].to}
	text := f.text[all.from:all.to]
	if len(runs) > 1 {
		var b strings.Builder
		for _, r := range runs {
			b.WriteString(f.text[r.from:r.to])
		}
		text = b.String()
	}
	if decoded, ok := decodeText(text); ok {
		if depth < deepest && len(find(decoded, depth+1)) > 0 {
			f.found = append(f.found, all)
		}
		return
	}
	if len(runs) == 1 {
		return
	}
	if f.keyLines(runs) {
		f.found = append(f.found, all)
		return
	}
	for _, r := range runs { // lines that have nothing to do with each other
		f.block([]run{r}, depth)
	}
}

// keyLines reports whether lines are the body of a PEM file whose kind is cut
// away, which is masked because it can be a private key: two full lines of the
// same length, that are no digests.
func (f *finder) keyLines(runs []run) bool {
	full := 0
	for i, r := range runs {
		size := r.to - r.from
		if (size == 64 || size == 70 || size == 76) && r.alone && strings.Trim(f.text[r.from:r.to], "0123456789abcdefABCDEF") != "" &&
			!isPath(f.text[r.from:r.to]) && (full == 0 || i > 0 && runs[i-1].to-runs[i-1].from == size) {
			full++
		}
	}
	head := strings.TrimRight(f.text[max(runs[0].from-64, 0):runs[0].from], " \t\r\nn\\")
	end := runs[len(runs)-1].to
	tail := strings.TrimLeft(f.text[end:min(end+128, len(f.text))], " \t\r\nn\\")
	return full > 1 && !strings.HasSuffix(head, "-----") && !strings.HasPrefix(tail, "-----END CERTIFICATE") && !strings.HasPrefix(tail, "-----END PUBLIC") &&
		!strings.HasPrefix(tail, "-----END RSA PUBLIC")
}

// isPath tells words from noise: base64 has more than one capital in twelve.
func isPath(s string) bool {
	capitals := 0
	for i := range len(s) {
		if isUpper(s[i]) {
			capitals++
		}
	}
	return capitals*12 < len(s)
}

// isTail reports whether a short line reads like the last of base64.
func isTail(s string) bool {
	return strings.HasSuffix(s, "=") || hasDigit(s) || strings.ToLower(s) != s && strings.ToUpper(s) != s && strings.ToLower(s[1:]) != s[1:]
}

func lineBegins(s string, i int) bool {
	for i > 0 && (s[i-1] == ' ' || s[i-1] == '\t') {
		i--
	}
	return i == 0 || strings.IndexByte("\r\n\"'", s[i-1]) >= 0 || i > 1 && s[i-2] == '\\' && (s[i-1] == 'n' || s[i-1] == 'r')
}

// decodeText decodes base64 if what comes out is text. A few characters before
// it, or cut off from it, do not matter.
func decodeText(run string) (string, bool) {
	run = strings.TrimRight(run, "=")
	encoding := base64.RawStdEncoding
	if strings.ContainsAny(run, "-_") {
		encoding = base64.RawURLEncoding
	}
	for off := range 4 {
		text := run[min(off, len(run)):]
		if len(text)%4 == 1 {
			text = text[:len(text)-1]
		}
		if len(text) < shortestRun-4 {
			return "", false
		}
		var probe [12]byte
		if n, err := encoding.Decode(probe[:], []byte(text[:16])); err != nil || !printable(cut(probe[:n])) {
			continue
		}
		if decoded, err := encoding.DecodeString(text); err == nil && printable(decoded) {
			return string(decoded), true
		}
	}
	return "", false
}

// cut leaves out the characters that begin or end outside of a part of a text.
func cut(part []byte) []byte {
	for range 3 {
		if len(part) > 0 && !utf8.RuneStart(part[0]) {
			part = part[1:]
		}
	}
	for i := 1; i < utf8.UTFMax && i <= len(part); i++ {
		if b := part[len(part)-i:]; utf8.RuneStart(b[0]) {
			if !utf8.FullRune(b) {
				part = part[:len(part)-i]
			}
			break
		}
	}
	return part
}

func printable(text []byte) bool {
	for _, c := range text {
		if c < ' ' && c != '\n' && c != '\r' && c != '\t' && c != 0x1b || c == 0x7f {
			return false
		}
	}
	return utf8.Valid(text)
}

var isBase64 = func() (is [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_") {
		is[c] = true
	}
	return is
}()

// layers is how often escape codes are taken out of what taking some out made.
const layers = 3

// visible returns a text without escape codes and characters of no width, and
// where in the text its bytes stand: nil if nothing is left out.
func visible(s string) (string, []int) {
	var at []int
	for range layers {
		seen, were := strip(s)
		if were == nil {
			break
		}
		for i, was := range were {
			if at != nil {
				were[i] = at[was]
			}
		}
		s, at = seen, were
	}
	return s, at
}

func strip(s string) (string, []int) {
	i := 0
	for i < len(s) && (!hides[s[i]] || unseen(s, i) == 0) {
		i++
	}
	if i == len(s) {
		return s, nil
	}
	seen, at := make([]byte, 0, len(s)), make([]int, 0, len(s))
	for i := 0; i < len(s); {
		if n := unseen(s, i); n > 0 {
			i += n
			continue
		}
		seen, at = append(seen, s[i]), append(at, i)
		i++
	}
	return string(seen), at
}

// hides are the bytes that what cannot be seen begins with. Nearly all others are
// passed by here.
var hides = [256]bool{0x1b: true, '\\': true, 0xc2: true, 0xe2: true, 0xef: true}

// unseen is the length of what cannot be seen at a position, 0 if it can: escape
// codes of terminals (ECMA-48), also as JSON writes them, soft hyphens, and
// characters of no width.
func unseen(s string, i int) int {
	switch s[i] {
	case 0x1b:
		return 1 + sequence(s[i+1:])
	case '\\':
		if strings.HasPrefix(s[i:], `\u001b[`) || strings.HasPrefix(s[i:], `\u001B[`) {
			return 6 + sequence(s[i+6:])
		}
	case 0xc2, 0xe2, 0xef:
		switch r, size := utf8.DecodeRuneInString(s[i:]); {
		case r == 0xad, r >= 0x200b && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2060 && r <= 0x2064, r == 0xfeff:
			return size
		}
	}
	return 0
}

// sequence is the length of what follows the escape character.
func sequence(s string) int {
	if s == "" || s[0] != '[' {
		return 0
	}
	for i := 1; i < len(s) && i < 32; i++ {
		if s[i] >= 0x40 && s[i] <= 0x7e {
			return i + 1
		}
		if s[i] < 0x20 || s[i] > 0x3f {
			break
		}
	}
	return 0
}
