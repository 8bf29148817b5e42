"""Pinned answers of the trained model: token ids and the bits of every logit on the way.

They were made once by the NumPy backend. A change here is a change of the arithmetic: the same
model file, prompt, seed and settings would answer differently than before.
"""

from __future__ import annotations

PROMPT = "Once upon a time"
PROMPT_IDS = (1, 403, 407, 261, 378)

# What the trained model says next, by an independent fp32 implementation.
TEXT_F32 = (
    ", there was a little girl named Lily. She loved to play outside in the park. One day, she "
    "saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do"
)


def ids(text: str) -> tuple[int, ...]:
    """Read token ids separated by white space."""
    return tuple(map(int, text.split()))


GREEDY_IDS = {
    "F32": ids(
        """
        432 383 286 261 376 298 315 421 395 317 426 338 401 396 267 337 410 408 419 292 411
        322 265 282 295 433 426 385 328 432 358 394 261 370 432 352 266 268 388 426 338 391
        266 267 337 335 312 432 398 312 286 267 414 270 333 415 426 13 438 310 439 419 357
        336 432 313 438 310 432 278 316 439 419 298 414 267 265 282 295 433 426 436 317 286
        296 418 269 279 292 416 439 413 409 416 327 263 415 294 267 400
        """
    ),
    "Q8_0": ids(
        """
        432 383 286 261 376 298 315 421 395 317 426 338 401 396 267 337 410 408 419 292 411
        322 265 282 295 433 426 385 328 432 358 394 261 370 432 352 266 268 388 426 338 391
        266 267 337 335 312 432 398 312 286 267 414 270 333 415 426 338 261 419 355 311 357
        432 313 457 303 359 337 335 364 420 268 388 450 436 320 285 357 336 432 313 452 406
        432 312 439 419 378 267 298 414 270 287 411 426 436 13 438 310
        """
    ),
    "Q4_0": ids(
        """
        432 383 286 261 376 298 315 421 395 317 426 338 401 396 267 337 410 408 419 292 411
        322 265 262 379 426 385 328 432 358 272 277 264 261 262 423 388 268 414 444 373 282
        412 427 285 353 265 298 420 277 264 426 338 286 384 393 269 282 420 277 418 373 311
        372 421 431 426 13 438 310 286 384 393 269 336 432 313 434 415 303 433 364 432 317
        443 410 452 277 261 276 384 262 425 420 427 420 293 266 443 436
        """
    ),
}

# SHA-256 over float32 logits of PROMPT_IDS and the first 99 answers: [104, 512], little-endian.
LOGITS_SHA256 = {
    "F32": "6a0eef493df7e0d5dcf610b064a29ffebb8843b16df47881a657bf13aafa1e3a",
    "Q8_0": "7ec701d8605e789ac7d750c1e30d6a21693eef95df2949a265b26658eca7f8c5",
    "Q4_0": "5b9514a501c2287bc7f70ea7f7ad168c76921660818156c8fb7b5a0e1d3a5933",
}

# Drawn with the settings of test_golden_tokens.SAMPLED.
SAMPLED_IDS = {
    "F32": ids(
        """
        432 383 286 261 376 400 428 395 392 412 444 426 346 381 284 303 422 374 419 263 415
        414 397 396 322 261 370 270 277 372 426 385 328 432 281 282 323 345 297 411 305 413
        289 322 265 409 275 429 260 416 387 272 347 418 426 346 280 421 288 430
        """
    ),
    "Q8_0": ids(
        """
        432 383 286 261 376 400 428 395 392 412 444 426 346 381 284 303 422 374 419 263 415
        414 397 396 322 261 370 270 277 372 426 385 328 432 281 282 323 345 296 416 406 272
        425 306 373 298 420 412 427 406 443 359 413 286 399 278 289 428 269 261
        """
    ),
    "Q4_0": ids(
        """
        432 383 286 261 376 268 414 422 395 405 426 405 401 396 267 337 335 345 280 295 413
        414 289 419 426 385 328 432 281 410 449 425 423 427 266 279 327 416 267 296 290 265
        270 414 305 426 346 286 399 298 417 431 413 266 329 429 412 425 372 312
        """
    ),
}
