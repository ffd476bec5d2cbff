package audit

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// span is a part of a text, in bytes.
type span struct{ from, to int }

// MaskText replaces credentials within a text and keeps what stands around
// them: password=***. It goes by gitleaks' rules and the few that these lack,
// and looks through base64, through line breaks within tokens, and through
// escape codes and characters that cannot be seen.
//
// The text can be chosen by an attacker, so the time it takes is linear in its
// length, whatever it says.
func MaskText(s string) string { return maskText(s, nil) }

// maskText is MaskText that reports what it takes out, nil for no report.
func maskText(s string, removed func(string)) string {
	// What is masked can lay bare what it overlapped.
	for range 4 {
		found := find(s, 0)
		if len(found) == 0 {
			break
		}
		s = replace(s, found, removed)
	}
	return s
}

func replace(s string, found []span, removed func(string)) string {
	slices.SortFunc(found, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var b strings.Builder
	done := 0
	for i := 0; i < len(found); {
		from, to := found[i].from, found[i].to
		for i++; i < len(found) && found[i].from < to; i++ {
			to = max(to, found[i].to)
		}
		for from > done && !utf8.RuneStart(s[from]) {
			from--
		}
		for to < len(s) && !utf8.RuneStart(s[to]) {
			to++
		}
		if from = max(from, done); to <= from {
			continue
		}
		if removed != nil {
			removed(s[from:to])
		}
		b.WriteString(s[done:from])
		b.WriteString(Masked)
		done = to
	}
	b.WriteString(s[done:])
	return b.String()
}

// shortest is how long a text must be to hold a credential that can be told.
const shortest = 8

// find returns where credentials stand in a text. depth counts the base64 that
// it was in.
func find(s string, depth int) []span {
	if len(s) < shortest {
		return nil
	}
	text, at := visible(s)
	f := finder{text: text, set: rules()}
	f.set.keywords.each(text, f.hit)
	f.privateKeys()
	f.encoded(depth)
	found := slices.DeleteFunc(f.found, func(is span) bool { return is.from >= is.to || text[is.from:is.to] == Masked })
	if at != nil {
		for i, is := range found {
			found[i] = span{at[is.from], at[is.to-1] + 1}
		}
	}
	return found
}

type finder struct {
	text   string
	set    *ruleset
	found  []span
	named  int // up to where names were looked at
	looked map[*rule]look
	last   struct { // what assigns said of a position: several rules ask
		at  int
		yes bool
	}
	judged struct { // what an allowance said of a line: several matches share it
		text    string
		by      *allowance
		allowed bool
	}
}

// look is what was looked at for a rule. It keeps the time linear where
// keywords follow each other more closely than a rule looks ahead.
type look struct {
	until int // what begins before it was looked at
	since int // where the tries began that are counted
	tries int
}

// reach is how far around a keyword a rule is looked for. A match that reaches
// that far is looked for again in a longer part, up to farthest.
const (
	reach    = 768
	back     = 256
	near     = 280 // of a name, an operator and a value of gitleaks' generic rule
	farthest = 1 << 16
	// crowd is how many keywords within reach are followed up one by one. Where
	// there are more, a stretch is searched at once.
	crowd   = 24
	stretch = 4096
	// distinctive is the length of a keyword that a token is known by though
	// it is broken.
	distinctive = 3
)

// hit follows up one keyword.
func (f *finder) hit(index, at int) {
	for _, r := range f.set.rules[index] {
		switch {
		case r.named:
			if at >= f.named {
				var secret span
				var ok bool
				if f.named, secret, ok = assignment(f.text, at); ok {
					f.found = append(f.found, secret)
					f.named = max(f.named, secret.to) // names within it are masked with it
				}
			}
		case at < f.looked[r].until, r.assigned && !f.assigns(at):
		case !r.anchored:
			f.around(r, at, reach/2)
		case f.crowded(r, at):
			f.around(r, at, stretch)
		default:
			end := f.anchored(r, at)
			if r.wrapped && len(f.set.words[index]) >= distinctive {
				f.unwrapped(r, at, end)
			}
		}
	}
}

// crowded counts a try, and reports whether there were too many close by.
func (f *finder) crowded(r *rule, at int) bool {
	l := f.looked[r]
	if at-l.since > reach {
		l.since, l.tries = at, 0
	}
	l.tries++
	f.see(r, l)
	return l.tries > crowd
}

func (f *finder) see(r *rule, l look) {
	if f.looked == nil {
		f.looked = map[*rule]look{}
	}
	f.looked[r] = l
}

// until notes that what begins before a position was looked at.
func (f *finder) until(r *rule, to int) {
	l := f.looked[r]
	l.until = max(l.until, to)
	f.see(r, l)
}

func (f *finder) assigns(at int) bool {
	if f.last.at != at+1 { // so that the zero value is none
		f.last.at, f.last.yes = at+1, assigns(f.text, at)
	}
	return f.last.yes
}

// assigns reports whether an operator and a value of a fitting length follow a
// name closely enough for the rules that want these. It is what makes names
// that are frequent cheap: their regular expressions are slow.
func assigns(s string, i int) bool {
	for end := min(len(s), i+72); i < end && (isWord(s[i]) || s[i] == '.' || s[i] == '-' || s[i] == ' ' || s[i] == '\t'); {
		i++
	}
	for end := min(len(s), i+5); i < end && strings.IndexByte(" \t\r\n'\"\\", s[i]) >= 0; {
		i++
	}
	if i == len(s) || strings.IndexByte("=>:|?,", s[i]) < 0 {
		return false
	}
	for end := min(len(s), i+16); i < end && strings.IndexByte("=>:|?, \t\r\n'\"`\\", s[i]) >= 0; {
		i++
	}
	const shortest, longest = 5, 200
	value := i
	for end := min(len(s), i+longest); i < end && (isWord(s[i]) || strings.IndexByte(".-=+/%", s[i]) >= 0); {
		i++
	}
	return i-value >= shortest && i-value < longest
}

// anchored looks for a rule whose match begins at a position, and returns where
// the secret ends, 0 if there is none.
func (f *finder) anchored(r *rule, at int) (end int) {
	from := max(at-1, 0)
	size := reach
	if r.assigned {
		size = near
	}
	for ; ; size *= 4 {
		to := min(from+size, len(f.text))
		part := f.text[from:to]
		m := r.regex().FindStringSubmatchIndex(part)
		if m == nil {
			break
		}
		if from+m[1] == to && to < len(f.text) && size < farthest {
			continue
		}
		if m[1] > reach {
			f.until(r, from+m[1]) // or keywords within it would each look as far
		}
		if secret, ok := f.weigh(r, part, at-from, m, at); ok {
			end = from + secret.to
			f.found = append(f.found, span{from + secret.from, end})
		}
		break
	}
	return end
}

// unwrapped looks for the same across line breaks, such as log collectors put
// into long lines. end is where the match without any ended, 0 for none: then
// what is on the next line only belongs to it if it reads like the rest.
func (f *finder) unwrapped(r *rule, begin, end int) {
	const breaks = 3
	from, i := max(begin-1, 0), begin
	for i < len(f.text) && i < from+reach && f.text[i] > ' ' && strings.IndexByte(`"'\\`, f.text[i]) < 0 {
		i++
	}
	if i < len(f.text) && breakAt(f.text, i) == 0 {
		return // tokens have no spaces: it ends within the line
	}
	text := make([]byte, 0, 128)
	var at []int
	next := from
	for n := 0; n <= breaks && len(text) < reach; n++ {
		joint := len(text)
		for next < len(f.text) && len(text) < reach && breakAt(f.text, next) == 0 {
			text, at = append(text, f.text[next]), append(at, next)
			next++
		}
		if n > 0 {
			m := r.regex().FindSubmatchIndex(text)
			if m == nil && n == breaks || m != nil && m[1] <= joint {
				return
			}
			if m != nil {
				secret, ok := f.weigh(r, string(text), begin-from, m, begin)
				if !ok || secret.to <= joint {
					return
				}
				if end > 0 && !rest(string(text[joint:secret.to]), string(text[secret.to:])) {
					return
				}
				end = at[secret.to-1] + 1
				f.found = append(f.found, span{at[secret.from], end})
				if secret.to < len(text) {
					return
				}
			}
		}
		gap := breakAt(f.text, next)
		if gap == 0 || n == 0 && end > 0 && end < next {
			return // the end of the text, or the token does not reach the break
		}
		next += gap
	}
}

// rest reports whether the beginning of a line reads like the end of a token.
func rest(piece, behind string) bool {
	lone := behind == "" || strings.IndexByte(" \t\"'\\,;)}", behind[0]) >= 0
	return lone && len(piece) >= 8 && random(piece)
}

// around looks for a rule near a keyword and for some way ahead, where what it
// matches has the keyword within, or only by it, or where keywords are many.
func (f *finder) around(r *rule, at, ahead int) {
	f.until(r, at+ahead)
	from, to := max(at-back, 0), min(at+ahead+reach/2, len(f.text))
	regex := r.regex
	if r.anchored {
		from, regex = max(at-1, 0), r.anywhere
	}
	for from > 0 && from > at-2*back && isWord(f.text[from-1]) { // not within a word
		from--
	}
	for end := to + reach; to < len(f.text) && to < end && isWord(f.text[to]); {
		to++
	}
	part := f.text[from:to]
	for _, m := range regex().FindAllStringSubmatchIndex(part, -1) {
		begin := from + m[0]
		switch {
		case r.assigned && !f.assigns(begin):
		case r.anchored && m[1] == len(part) && to < len(f.text):
			f.until(r, max(f.anchored(r, begin), begin+1)) // it may go on
		default:
			if secret, ok := f.weigh(r, part, m[0], m, begin); ok {
				f.found = append(f.found, span{from + secret.from, from + secret.to})
			}
		}
	}
}

// weigh decides as gitleaks does whether a match is a secret, and which part.
// begin is where the match begins without the byte before it, and place where
// that is in the whole text.
func (f *finder) weigh(r *rule, text string, begin int, m []int, place int) (span, bool) {
	at := span{begin, m[1]}
	if g := r.group; g > 0 && m[2*g] >= 0 {
		at = span{m[2*g], m[2*g+1]}
	} else {
		for g := 2; g < len(m); g += 2 {
			if m[g] >= 0 && m[g+1] > m[g] {
				at = span{m[g], m[g+1]}
				break
			}
		}
	}
	secret := text[at.from:at.to]
	switch {
	case r.check != nil && !r.check(secret), r.entropy > 0 && entropy(secret) <= r.entropy:
		return at, false
	case r.assigned && (!hasDigit(secret) || isObjectName(secret)), r.generic && !guess(secret):
		return at, false // in a cluster many a name of a product is followed by one of an object
	case f.set.global.allows(secret, secret):
		return at, false
	}
	for i := range r.allow {
		a := &r.allow[i]
		var allowed bool
		switch a.of {
		case "match":
			start := place
			for start > 0 && place-start < 50 && (isWord(f.text[start-1]) || f.text[start-1] == '.' || f.text[start-1] == '-') {
				start--
			}
			allowed = a.allows(secret, f.text[start:place]+text[begin:m[1]])
		case "line":
			if line := f.line(place); f.judged.text != line || f.judged.by != a {
				f.judged.text, f.judged.by, f.judged.allowed = line, a, a.allows(secret, line)
			}
			allowed = f.judged.allowed
		default:
			allowed = a.allows(secret, secret)
		}
		if allowed {
			return at, false
		}
	}
	return at, true
}

// line is the line of a position. Of a long line it is a part that those near
// by share.
func (f *finder) line(at int) string {
	block := at &^ (back - 1)
	from, to := max(block-back, 0), min(block+2*back, len(f.text))
	from += strings.LastIndexByte(f.text[from:at], '\n') + 1
	if end := strings.IndexByte(f.text[at:to], '\n'); end >= 0 {
		to = at + end
	}
	return f.text[from:to]
}

var (
	pem = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|$)`)
	// pemEnd is a private key whose beginning was cut off.
	pemEnd = regexp.MustCompile(`[A-Za-z0-9+/=\s\\]*-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----`)
)

// privateKeys finds PEM, also where one end is cut off, which gitleaks' rule
// does not.
func (f *finder) privateKeys() {
	if !strings.Contains(f.text, "PRIVATE KEY") {
		return
	}
	for _, regex := range []*regexp.Regexp{pem, pemEnd} {
		for _, m := range regex.FindAllStringIndex(f.text, -1) {
			f.found = append(f.found, span{m[0], m[1]})
		}
	}
}
