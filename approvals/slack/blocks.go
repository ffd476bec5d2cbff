package slack

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	slackgo "github.com/slack-go/slack"

	"countersign/action"
	"countersign/approvals"
	"countersign/gate"
)

// Names by which Slack sends back what a person did: of buttons, modals and inputs.
const (
	actionApprove     = "approve"
	actionApproveKind = "approve_kind"
	actionReview      = "review"
	actionReject      = "reject"
	actionNext        = "next"
	actionPrevious    = "previous"
	inputReason       = "reason"
	inputGrant        = "grant"
)

// Limits in UTF-16 units, which no way of counting characters exceeds. Slack
// takes near 12,000 in a message and 3,000 in a text, and says only the latter.
const (
	messageRoom = 8000 // all texts of a message
	diffRoom    = 2900 // a diff in a message
	blockRoom   = 2700 // one text of a page
	pageBlocks  = 3    // such texts of a page
	headerRoom  = 150
)

// Widths at which lines are broken before Slack breaks them: what comes after a
// break of Slack's would look like a line of its own.
const (
	messageWidth = 84
	pageWidth    = 60
	broken       = "      ↳ "
)

// question is the message about an operation, waiting or not. The fallback is
// what notifications show; it is to be sent without parse and link_names.
func question(op approvals.Operation) (fallback string, blocks []slackgo.Block) {
	_, text := standing(op)
	blocks, _, _ = message(op)
	return escape(clip(text+": "+title(op)+", asked by "+asker(op), 600)), blocks
}

// whole reports whether the message shows all that would change, so that it can
// be approved from there.
func whole(op approvals.Operation) bool {
	_, all, _ := message(op)
	return all
}

// offersKind reports whether the message tells what approving the kind would
// allow, so that it can be approved from there.
func offersKind(op approvals.Operation) bool {
	_, _, kind := message(op)
	return kind
}

// message makes the blocks of a question. What there is no room for in full is
// not offered for approval.
func message(op approvals.Operation) (blocks []slackgo.Block, whole, kind bool) {
	diff, fits := wholeDiff(op)
	note, grantable := kindNote(op)
	for _, try := range []struct{ whole, kind bool }{{true, true}, {true, false}, {false, false}} {
		whole, kind = try.whole && fits, try.kind && grantable
		if whole != try.whole || kind != try.kind {
			continue
		}
		above := []slackgo.Block{header(title(op)), rich(append([]slackgo.RichTextElement{mood(op)}, bullets(op)...)...)}
		below := []slackgo.Block{rich(facts(op))}
		if op.AgentReason != "" {
			below = append(below, rich(words(op)...))
		}
		if kind {
			below = append(below, small(note))
		}
		if op.State == approvals.PendingApproval {
			below = append(below, buttons(op, whole, kind))
		}
		below = append(below, small(digests(op)))
		room := messageRoom - spent(above) - spent(below)
		if whole && size(diff) > room {
			continue
		}
		changes := rich(pre(diff))
		if !whole {
			changes = outline(op, diff, room)
		}
		return slices.Concat(above, []slackgo.Block{changes}, below), whole, kind
	}
	return nil, false, false // the last always fits
}

// wholeDiff is all that would change, and whether it can be shown in a message.
func wholeDiff(op approvals.Operation) (string, bool) {
	var parts []string
	for i := range op.Plan.Actions {
		parts = append(parts, approvals.ActionText(op, i))
	}
	diff := strings.Join(wrap(strings.Join(parts, "\n"), messageWidth), "\n")
	return diff, diff != "" && size(diff) <= diffRoom
}

// outline stands where the whole diff does not fit, in so much room.
func outline(op approvals.Operation, diff string, room int) slackgo.Block {
	said := fmt.Sprintf("All of it is %d characters, too long for a message.", size(diff))
	if op.State == approvals.PendingApproval {
		said += " Review shows the whole, and Approve is on its last page."
	}
	said += " In short:"
	lines := wrap(strings.Join(approvals.Outline(op, 12), "\n"), messageWidth)
	return rich(section(plain(said)), pre(fold(lines, min(1200, room-size(said)-30))))
}

// kindNote tells what approving the kind would allow, and whether that can be
// offered in a message: not where there is too much to tell.
func kindNote(op approvals.Operation) (string, bool) {
	kinds := op.Kinds()
	if op.GrantFor == 0 || op.State != approvals.PendingApproval || len(kinds) == 0 {
		return "", false
	}
	var all []string
	for _, k := range kinds {
		if text := approvals.Visible(k.String()); !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	text := fmt.Sprintf("Approving this kind lets %s do this to any values for %s, without asking again: %s",
		asker(op), approvals.Duration(op.GrantFor), strings.Join(all, "; "))
	return text, size(text) <= 900
}

func buttons(op approvals.Operation, whole, grant bool) slackgo.Block {
	button := func(id, text string, style slackgo.Style) slackgo.BlockElement {
		return slackgo.NewButtonBlockElement(id, op.ID, text75(text)).WithStyle(style)
	}
	var all []slackgo.BlockElement
	if whole {
		all = append(all, button(actionApprove, "Approve", slackgo.StylePrimary))
	}
	all = append(all, button(actionReview, "Review", slackgo.StyleDefault))
	if whole && grant {
		all = append(all, button(actionApproveKind, "Approve this kind for "+approvals.Duration(op.GrantFor), slackgo.StyleDefault))
	}
	all = append(all, button(actionReject, "Reject", slackgo.StyleDanger))
	return slackgo.NewActionBlock("decide", all...)
}

// title names the request, or says how many there are.
func title(op approvals.Operation) string {
	clusters := many(each(op, func(a action.Action) string { return a.Cluster }), 2)
	if len(op.Plan.Actions) == 1 {
		return clip(short(op.Plan.Actions[0].String(), headerRoom-30)+" on "+clusters, headerRoom)
	}
	return clip(fmt.Sprintf("%s: %d requests on %s", short(op.Tool, 60), len(op.Plan.Actions), clusters), headerRoom)
}

// standing says in a line how it stands, with the name of an emoji.
func standing(op approvals.Operation) (emoji, text string) {
	by := ""
	if op.Grant != "" {
		by = "Covered by grant " + short(op.Grant, 60)
	} else if names := approvers(op); len(names) > 0 {
		by = "Approved by " + many(names, 5)
	}
	why := func(text string) string {
		if op.Reason == "" {
			return text
		}
		return text + ": " + short(op.Reason, 400)
	}
	after := func(text string) string {
		if by == "" {
			return text
		}
		return text + ". " + by
	}
	switch op.State {
	case approvals.PendingApproval:
		return "hourglass_flowing_sand", fmt.Sprintf("Waiting for %s%s until %s", atLeast(op), count(op.Missing(), "more approval", "more approvals"), clock(op.Expires))
	case approvals.Authorized:
		return "hourglass_flowing_sand", strings.TrimPrefix(by+" — about to run", " — ")
	case approvals.Executing:
		return "gear", strings.TrimPrefix(by+" — running", " — ")
	case approvals.Succeeded:
		return "white_check_mark", after("Succeeded")
	case approvals.Failed:
		return "x", after(why("Failed, nothing was changed"))
	case approvals.Partial:
		return "warning", after(why(fmt.Sprintf("Only %d of %d done, then it failed", op.Done, len(op.Plan.Actions))))
	case approvals.Unknown:
		return "warning", after(why("Unknown whether it was done; the server is finding out"))
	case approvals.Reconciled:
		found := map[string]string{
			"applied":     "It was done, as the server found out afterwards",
			"not_applied": "It was not done, as the server found out afterwards",
		}[op.Evidence]
		if found == "" {
			found = "Whether it was done cannot be told: somebody should look"
		}
		return "mag", after(why(found))
	case approvals.Rejected:
		who := "nobody"
		if n := len(op.Votes); n > 0 {
			who = op.Votes[n-1].Person.Name
		}
		return "no_entry_sign", why("Rejected by " + short(who, 120))
	case approvals.Expired:
		return "alarm_clock", why("Expired")
	case approvals.Cancelled:
		return "heavy_minus_sign", why("Not run")
	case approvals.Denied:
		return "no_entry_sign", why("Denied by policy")
	case approvals.Stale:
		text := why("Out of date")
		if op.SupersededBy != "" {
			text += "; it was asked again as " + short(op.SupersededBy, 60)
		}
		return "arrows_counterclockwise", text
	}
	return "question", short(string(op.State), 60)
}

// atLeast is said where what is missing depends on who comes: several rules ask,
// and one person may count for some of them only.
func atLeast(op approvals.Operation) string {
	if len(op.Requirements) > 1 {
		return "at least "
	}
	return ""
}

// approvers are the names of those who approved. Their ids are among the facts.
func approvers(op approvals.Operation) []string {
	var names []string
	for _, v := range op.Votes {
		if v.Approve {
			names = append(names, v.Person.Name)
		}
	}
	return names
}

// facts says who asks, where, why people are asked, whom, and what they said.
func facts(op approvals.Operation) *slackgo.RichTextSection {
	var all []slackgo.RichTextSectionElement
	line := func(label, text string) {
		if text == "" {
			return
		}
		if len(all) > 0 {
			all = append(all, plain("\n"))
		}
		all = append(all, bold(label), plain(" "+text))
	}
	line("Asked by", asker(op)+" ("+short(op.Principal.Issuer, 100)+")")
	line("Tool", short(op.Tool, 60))
	where := "cluster " + many(each(op, func(a action.Action) string { return a.Cluster }), 4)
	if namespaces := each(op, func(a action.Action) string { return a.Namespace }); len(namespaces) > 0 {
		where += ", namespace " + many(namespaces, 5)
	}
	line("Where", where)
	rules := many(op.Rules, 5)
	if op.Reason != "" && op.State == approvals.PendingApproval {
		rules = strings.TrimPrefix(rules+": "+short(op.Reason, 300), ": ")
	}
	line("Rules", rules)
	var needs []string
	for _, r := range op.Requirements {
		need := r.String()
		if !slices.Contains(needs, need) {
			needs = append(needs, need)
		}
	}
	line("Needs", many(needs, 5))
	votes := op.Votes
	if more := len(votes) - 5; more > 0 {
		line("Votes", fmt.Sprintf("%d earlier ones, see Review", more))
		votes = votes[more:]
	}
	for _, v := range votes {
		word := "Approved by"
		switch {
		case !v.Approve:
			word = "Rejected by"
		case v.Grant:
			word = "Kind approved by"
		}
		text := short(v.Person.String(), 80)
		if v.Reason != "" {
			text += ": " + short(v.Reason, 120)
		}
		line(word, text)
	}
	if op.Supersedes != "" {
		line("Asks again", "for "+short(op.Supersedes, 60)+", because what it would do has changed")
	}
	for i, d := range op.Drift {
		if i == 5 {
			line("Differs", fmt.Sprintf("in %d more lines, see Review", len(op.Drift)-i))
			break
		}
		line("Differs", short(d, 200))
	}
	if op.Gave != "" {
		line("Grant", fmt.Sprintf("%s covers this kind until %s; to take it back, on the server: countersign grants revoke", short(op.Gave, 60), clock(op.GaveUntil())))
	} else if op.State != approvals.PendingApproval && slices.ContainsFunc(votes, func(v approvals.Vote) bool { return v.Grant }) {
		line("Grant", "none: not everybody who was needed approved the kind")
	}
	return section(all...)
}

func asker(op approvals.Operation) string { return short(op.Principal.String(), 200) }

func digests(op approvals.Operation) string {
	text := "Operation " + short(op.ID, 60) + " · plan " + fingerprint(op.PlanDigest)
	if op.PreviewDigest != "" {
		text += " · diff " + fingerprint(op.PreviewDigest)
	}
	return text
}

// fingerprint is enough of a digest to compare it by eye; Review has all of it.
func fingerprint(digest string) string {
	name, sum, ok := strings.Cut(digest, ":")
	if !ok {
		name, sum = "", digest
	}
	if len(sum) > 16 {
		sum = sum[:16] + "…"
	}
	return short(strings.TrimPrefix(name+":"+sum, ":"), 40)
}

// meta says in which channel a modal was opened, and which page it shows.
type meta struct {
	Op      string `json:"op"`
	Channel string `json:"channel"`
	Page    int    `json:"page,omitempty"`
}

func (m meta) String() string {
	data, _ := json.Marshal(m) // of strings and a number
	return string(data)
}

var (
	opForm      = regexp.MustCompile(`^[-0-9A-Za-z]{1,64}$`)
	channelForm = regexp.MustCompile(`^[CDG][0-9A-Z]{1,32}$`)
)

// parseMeta reads what a modal brought back.
func parseMeta(text string) (meta, error) {
	var m meta
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return meta{}, fmt.Errorf("reading private_metadata: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return meta{}, errors.New("reading private_metadata: more than one value")
	}
	if !opForm.MatchString(m.Op) || !channelForm.MatchString(m.Channel) || m.Page < 0 || m.Page > 1<<20 {
		return meta{}, errors.New("reading private_metadata: not what this server wrote")
	}
	return m, nil
}

// sheet is one page of the text that an approver reads.
type sheet struct {
	blocks []string // texts, each fit for one block
	object string   // the request that the page begins within
}

// paged cuts the whole text of an operation into pages.
func paged(op approvals.Operation) []sheet {
	var pages []sheet
	var current sheet
	var block []string
	room, object := blockRoom, ""
	flush := func() {
		if len(block) > 0 {
			current.blocks = append(current.blocks, strings.Join(block, "\n"))
			block, room = nil, blockRoom
		}
	}
	add := func(text string) {
		for _, line := range wrap(text, pageWidth) {
			if room -= size(line) + 1; room < 0 {
				flush()
				if len(current.blocks) == pageBlocks {
					pages, current = append(pages, current), sheet{object: object}
				}
				room -= size(line) + 1
			}
			block = append(block, line)
		}
	}
	all := approvals.Text(op)
	var parts []string
	for i := range op.Plan.Actions {
		parts = append(parts, "\n"+approvals.ActionText(op, i))
	}
	add(strings.TrimSuffix(all, strings.Join(parts, "")))
	for _, part := range parts {
		object = strings.SplitN(part, "\n", 3)[1]
		add(part)
	}
	flush()
	return append(pages, current)
}

// pages counts the pages of an operation's review.
func pages(op approvals.Operation) int { return len(paged(op)) }

// review is the modal with one page of the whole text, the first of which is 0.
// Only the last can be submitted.
func review(op approvals.Operation, number int, m meta) slackgo.ModalViewRequest {
	all := paged(op)
	number = min(max(number, 0), len(all)-1)
	m.Op, m.Page = op.ID, number
	shown := all[number]
	first, last := number == 0, number == len(all)-1

	where := fmt.Sprintf("Page %d of %d", number+1, len(all))
	if shown.object != "" {
		where += ", within " + short(shown.object, 200)
	}
	blocks := []slackgo.Block{small(where)}
	switch {
	case first:
		blocks = append(blocks, rich(append([]slackgo.RichTextElement{mood(op)}, bullets(op)...)...))
	case op.State != approvals.PendingApproval:
		blocks = append(blocks, rich(mood(op)))
	}
	for _, text := range shown.blocks {
		blocks = append(blocks, rich(pre(text)))
	}
	var turn []slackgo.BlockElement
	if !first {
		turn = append(turn, slackgo.NewButtonBlockElement(actionPrevious, op.ID, text75("Previous page")))
	}
	if !last {
		turn = append(turn, slackgo.NewButtonBlockElement(actionNext, op.ID, text75("Next page")).WithStyle(slackgo.StylePrimary))
	}
	if len(turn) > 0 {
		blocks = append(blocks, slackgo.NewActionBlock("turn", turn...))
	}
	view := modal(actionReview, "Review", m)
	switch {
	case op.State != approvals.PendingApproval:
	case !last:
		blocks = append(blocks, small("Approve is on the last page."))
	default:
		view.Submit = plainText("Approve", 24)
		blocks = append(blocks, reason("Why do you approve?", "", !reasonRequired(op)))
		if note, short := kindNote(op); note != "" {
			if !short {
				note = "What this covers stands on the first page, at Kind."
			}
			option := slackgo.NewOptionBlockObject(inputGrant, text75("Approve this kind for "+approvals.Duration(op.GrantFor)), nil)
			box := slackgo.NewInputBlock(inputGrant, plainText("For the next "+approvals.Duration(op.GrantFor), 100), plainText(note, 1900), slackgo.NewCheckboxGroupsBlockElement(inputGrant, option))
			blocks = append(blocks, box.WithOptional(true))
		}
	}
	view.Blocks = slackgo.Blocks{BlockSet: blocks}
	return view
}

// ask is the modal for the reason of an approval or a rejection.
func ask(op approvals.Operation, approve, kind bool, m meta) slackgo.ModalViewRequest {
	m.Op = op.ID
	id, name, label, hint, optional := actionReject, "Reject", "Why do you reject it?", "The agent reads it, and may try something else because of it.", false
	if approve {
		id, name, label, hint, optional = actionApprove, "Approve", "Why do you approve?", "It is kept with your approval.", !reasonRequired(op)
		if kind {
			id = actionApproveKind
		}
	}
	view := modal(id, name, m)
	view.Submit = plainText(name, 24)
	blocks := []slackgo.Block{rich(append([]slackgo.RichTextElement{section(bold(title(op)))}, bullets(op)...)...)}
	if note, _ := kindNote(op); approve && kind && note != "" {
		blocks = append(blocks, small(note))
	}
	if op.State != approvals.PendingApproval {
		view.Submit = nil
		view.Blocks = slackgo.Blocks{BlockSet: append(blocks, rich(mood(op)))}
		return view
	}
	view.Blocks = slackgo.Blocks{BlockSet: append(blocks, reason(label, hint, optional), small(digests(op)))}
	return view
}

func modal(callback, title string, m meta) slackgo.ModalViewRequest {
	return slackgo.ModalViewRequest{
		Type: slackgo.VTModal, CallbackID: callback, Title: plainText(title, 24), Close: plainText("Close", 24), PrivateMetadata: m.String(),
	}
}

func reason(label, hint string, optional bool) slackgo.Block {
	input := slackgo.NewPlainTextInputBlockElement(nil, inputReason).WithMultiline(true).WithMaxLength(approvals.MaxReason)
	block := slackgo.NewInputBlock(inputReason, plainText(label, 100), nil, input).WithOptional(optional)
	if hint != "" {
		block.Hint = plainText(hint, 300)
	}
	return block
}

// outcome is the answer below the message at the end.
func outcome(op approvals.Operation) (string, []slackgo.Block) {
	_, text := standing(op)
	elements := []slackgo.RichTextElement{mood(op)}
	if took := op.Updated.Sub(op.Created).Round(time.Second); took > 0 && !op.Created.IsZero() {
		elements = append(elements, section(plain("Ended at "+clock(op.Updated)+", "+approvals.Duration(took)+" after it was asked.")))
	}
	blocks := []slackgo.Block{rich(elements...)}
	// What reads and commands bring back is for the agent, not for the channel.
	if op.Result != "" && !op.Plan.ReadOnly() && !op.Plan.Runs() {
		var lines []string
		for line := range strings.Lines(op.Result) {
			lines = append(lines, approvals.Visible(strings.TrimRight(line, "\r\n")))
		}
		blocks = append(blocks, rich(section(bold("What the agent was told")), pre(fold(wrap(strings.Join(lines, "\n"), messageWidth), 1500))))
	}
	return escape(clip(text+": "+title(op), 600)), append(blocks, small(digests(op)))
}

// mentionForm is what Slack's ids of people and user groups look like.
var mentionForm = regexp.MustCompile(`^[USW][0-9A-Z]{1,32}$`)

// maxMentions bounds how many a reminder calls.
const maxMentions = 20

// reminder is the answer below the message shortly before the end. It calls the
// user groups and users with these ids.
func reminder(op approvals.Operation, groups, users []string) (string, []slackgo.Block) {
	text := fmt.Sprintf("Still waiting for %s; it expires at %s", count(op.Missing(), "more approval", "more approvals"), clock(op.Expires))
	var called []slackgo.RichTextSectionElement
	call := func(id string, e slackgo.RichTextSectionElement) {
		if mentionForm.MatchString(id) && len(called) < 2*maxMentions {
			called = append(called, e, plain(" "))
		}
	}
	for _, id := range groups {
		call(id, slackgo.NewRichTextSectionUserGroupElement(id))
	}
	for _, id := range users {
		call(id, slackgo.NewRichTextSectionUserElement(id, nil))
	}
	line := section(emoji("alarm_clock"), plain(" "), bold(text))
	elements := []slackgo.RichTextElement{line, section(plain(title(op)))}
	if len(called) > 0 {
		elements = append(elements, section(called...))
	}
	return escape(text + ": " + title(op)), []slackgo.Block{rich(elements...)}
}

// direct is the message to the person on whose behalf the agent acts. It has no
// buttons: nobody decides their own request.
func direct(op approvals.Operation) (string, []slackgo.Block) {
	text := short(op.Principal.Agent(), 100) + " asks on your behalf"
	elements := []slackgo.RichTextElement{section(bold(text+":"), plain(" "+title(op))), mood(op)}
	blocks := []slackgo.Block{rich(append(elements, bullets(op)...)...)}
	if op.AgentReason != "" {
		blocks = append(blocks, rich(words(op)...))
	}
	said := ""
	if op.State == approvals.PendingApproval {
		said = "You cannot decide this yourself: it is up to " + many(op.ApproverSets(), 5) + ". If you did not want it, tell them."
	}
	if said != "" {
		blocks = append(blocks, small(said))
	}
	return escape(clip(text+": "+title(op), 600)), append(blocks, small(digests(op)))
}

// errNotWhole refuses an approval from a message that does not show everything.
var errNotWhole = errors.New("the message does not show all that it would approve")

// refusal tells a person in plain words why an answer did not count, and what
// to do about it. It is not escaped.
func refusal(err error) string {
	_, detail, _ := strings.Cut(err.Error(), ": ")
	detail = short(detail, 300)
	if detail != "" {
		detail = " (" + detail + ")"
	}
	switch {
	case errors.Is(err, approvals.ErrNotPending):
		return "Too late: this is no longer waiting for anybody" + detail + ". Nothing more to do."
	case errors.Is(err, approvals.ErrBarred):
		return "This account may not decide anything" + detail + ". Somebody else has to."
	case errors.Is(err, approvals.ErrNotApprover):
		return "You are not among those who may decide this" + detail + ". Ask one of them; the server's configuration says who is in these sets."
	case errors.Is(err, approvals.ErrSelfApproval):
		return "The agent acts on your behalf here, so somebody else has to decide."
	case errors.Is(err, approvals.ErrVoted):
		return "You have voted on this already; it needs other people now."
	case errors.Is(err, approvals.ErrReason):
		return fmt.Sprintf("Say why, in at most %d characters, and send it again.", approvals.MaxReason)
	case errors.Is(err, approvals.ErrNotGrantable):
		return "This kind of change is approved one by one. Approve only this one."
	case errors.Is(err, errNotMine):
		return "This is not the message that asks about it. Look for the one that Countersign keeps up to date."
	case errors.Is(err, errNotWhole):
		return "This message does not show all that would change. Open Review and approve on its last page."
	case errors.Is(err, gate.ErrNotFound):
		return "There is nothing to decide here any more."
	}
	return "That did not work, and nothing was decided. Try again, or use `countersign approvals` on the server."
}

// What follows turns texts into blocks.

func header(text string) slackgo.Block { return slackgo.NewHeaderBlock(plainText(text, headerRoom)) }

func rich(elements ...slackgo.RichTextElement) slackgo.Block {
	return slackgo.NewRichTextBlock("", elements...)
}

func section(elements ...slackgo.RichTextSectionElement) *slackgo.RichTextSection {
	return slackgo.NewRichTextSection(elements...)
}

func mood(op approvals.Operation) slackgo.RichTextElement {
	name, text := standing(op)
	return section(emoji(name), plain(" "), bold(text))
}

func emoji(name string) slackgo.RichTextSectionElement {
	return slackgo.NewRichTextSectionEmojiElement(name, 0, nil)
}

// nothing stands where a text is empty, which Slack refuses.
const nothing = "–"

func plain(text string) *slackgo.RichTextSectionTextElement {
	return slackgo.NewRichTextSectionTextElement(cmp.Or(text, nothing), nil)
}

func bold(text string) *slackgo.RichTextSectionTextElement {
	return slackgo.NewRichTextSectionTextElement(cmp.Or(text, nothing), &slackgo.RichTextSectionTextStyle{Bold: true})
}

// bullets lists the summary; the risks, which come first, are bold.
func bullets(op approvals.Operation) []slackgo.RichTextElement {
	var items []slackgo.RichTextElement
	for i, line := range approvals.Summary(op) {
		text := plain(line)
		if i == 0 && len(op.Risks) > 0 {
			text = bold(line)
		}
		items = append(items, section(text))
	}
	if len(items) == 0 {
		return nil
	}
	return []slackgo.RichTextElement{slackgo.NewRichTextList(slackgo.RTEListBullet, 0, items...)}
}

// words are those of the agent, told apart from the server's.
func words(op approvals.Operation) []slackgo.RichTextElement {
	var lines []string
	for line := range strings.Lines(op.AgentReason) {
		lines = append(lines, approvals.Visible(strings.TrimRight(line, "\r\n")))
	}
	return []slackgo.RichTextElement{
		section(bold("The agent says"), plain(" (its own words, not checked)")),
		&slackgo.RichTextQuote{Type: slackgo.RTEQuote, Elements: []slackgo.RichTextSectionElement{plain(fold(lines, 700))}},
	}
}

func pre(text string) slackgo.RichTextElement {
	return &slackgo.RichTextPreformatted{Type: slackgo.RTEPreformatted, Elements: []slackgo.RichTextSectionElement{plain(text)}}
}

func small(text string) slackgo.Block {
	return slackgo.NewContextBlock("", plainText(text, 2900))
}

func text75(text string) *slackgo.TextBlockObject { return plainText(text, 75) }

func plainText(text string, most int) *slackgo.TextBlockObject {
	return slackgo.NewTextBlockObject(slackgo.PlainTextType, clip(cmp.Or(text, nothing), most), false, false)
}
