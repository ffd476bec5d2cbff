#!/bin/sh
# Takes the pictures of this folder anew from the golden files of approvals/slack,
# with Chromium. pictures.sum says what each shows; a test compares it.
set -eu
cd "$(dirname "$0")"
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
: >pictures.sum
take() { # PICTURE GOLDEN WIDTH HEIGHT
	"${CHROMIUM:-chromium}" --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
		--disable-component-update --disable-sync --user-data-dir="$profile" --allow-file-access-from-files --hide-scrollbars \
		--window-size="$3,$4" --screenshot="$PWD/$1" "file://$PWD/render.html?$2" >/dev/null 2>&1
	echo "$(sha256sum "../../approvals/slack/testdata/$2.json" | cut -d' ' -f1)  $2.json  $1" >>pictures.sum
}
take message.png question 720 790
take message-long.png question_too_long 720 780
take review.png review_first 560 900
take review-last.png review_one 560 1330
take reject.png ask_reject 560 520
